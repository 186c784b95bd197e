"""An attack of your own: one step along the gradient of the margin. `rkhs-eval --attack examples/own/own_attack.py:OneStep`."""

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks import Attack, Attacked


class OneStep(Attack):
    """One step of length eps (l2) or eps in each pixel (linf), down the gap between the label's logit and the next."""

    shrink: float = 1.0
    """Share of eps that the step takes."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor) -> Attacked:
        once = torch.ones(len(x), dtype=torch.int64, device=x.device)
        moved = x.clone().requires_grad_()
        with torch.enable_grad():
            logits = model(moved)
            label = nn.functional.one_hot(y, logits.shape[1]).bool()
            gap = logits[label] - logits.masked_fill(label, -torch.inf).amax(1)
            slope = torch.autograd.grad(gap.sum(), moved, allow_unused=True)[0]
        if slope is None:  # the model does not look at its images
            return Attacked(x.clone(), once, once)
        slope = slope.nan_to_num()
        if self.norm == "l2":
            step = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, *[1] * (x.dim() - 1))
        else:
            step = slope.sign()
        images = x - self.shrink * self.budget() * step
        images = torch.where((gap > 0).view(-1, *[1] * (x.dim() - 1)), images, x)  # what is wrong already stays as it is
        return Attacked(images.clamp(0, 1) if self.box == "unit" else images, once, once)


def one_step(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The same as a plain function, which is enough: `evaluate(model, data, eps=0.1, attacks=[one_step])`."""
    return OneStep(eps=eps)(model, x, y, torch.arange(len(x))).images
