"""A quick look for points of a ball at which another class wins, before a costly proof is tried."""

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.clock import ask

STARTS, STEPS = 4, 30


def refuted(model: nn.Module, x: Float64[Tensor, " *image"], label: int, other: int, eps: float, norm: Norm, unit: bool) -> bool:
    """Whether projected gradient steps reach f_label <= f_other within the ball (cut by the pixel box where `unit`).

    A hint that saves time: False says nothing, and no proof rests on it. Cost: STEPS forward and backward passes of STARTS points.
    """
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(STARTS, *x.shape, dtype=x.dtype, generator=generator).to(x.device)
    d[0] = 0
    low, high = torch.minimum(x, torch.zeros_like(x)), torch.maximum(x, torch.ones_like(x))
    d = _within(d, eps, norm)
    for step in range(STEPS):
        ask()
        at = (x + d).clamp(low, high) if unit else x + d
        with torch.enable_grad():
            logits = model(at.requires_grad_())
            gap = logits[:, label] - logits[:, other]
            (slope,) = torch.autograd.grad(gap.sum(), at)
        if bool((gap <= 0).any()):
            return True
        way = slope.sign() if norm == "linf" else slope / slope.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, *[1] * x.dim())
        d = _within(at.detach() - x - eps * (0.6 - 0.55 * step / STEPS) * way, eps, norm)
    return False


def _within(d: Tensor, eps: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return d.clamp(-eps, eps)
    shrunk: Tensor = d * (eps / d.flatten(1).norm(dim=1).clamp_min(1e-300)).clamp(max=1).view(-1, *[1] * (d.dim() - 1))
    return shrunk
