"""The inner maximisation of losses that perturb the images."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_rkhs.attacks.ball import project, unit
from robustbench_rkhs.nodes.threat_model import Box, Norm


def keys_or_positions(keys: Tensor | None, x: Tensor) -> Int[Tensor, " batch"]:
    """The keys, or by default the images' positions."""
    return torch.arange(len(x)) if keys is None else keys


def ascend(
    value: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, *, norm: Norm, eps: float, steps: int, step_size: float, box: Box
) -> Float[Tensor, "batch *image"]:
    """Projected gradient ascent on `value(images)`, one number per image, in the ball around `x`; the last iterate.

    Steps of length `step_size` along the normalised gradient (l2) or its sign (linf). No weight gradients are computed; an image
    whose gradient is zero or not finite stays where it is.
    Cost: `steps` forward and `steps` image-only backward passes.
    """
    moved = project(x, start, norm, eps, box).detach()
    for _ in range(steps):
        moved = moved.requires_grad_()
        with torch.enable_grad():
            total = value(moved).sum()
        gradient = None
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, moved, allow_unused=True)
        moved = moved.detach()
        if gradient is None:  # the model ignores its input
            return moved
        gradient = gradient.nan_to_num()
        direction = unit(gradient) if norm == "l2" else gradient.sign()
        moved = project(x, moved + step_size * direction, norm, eps, box)
    return moved.detach()


def divergence(clean: Float[Tensor, "batch classes"], moved: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """KL(softmax(clean) || softmax(moved)) of each image, in nats, from logits; differentiable in both."""
    first, second = clean.float().log_softmax(1), moved.float().log_softmax(1)
    return functional.kl_div(second, first, reduction="none", log_target=True).sum(1)
