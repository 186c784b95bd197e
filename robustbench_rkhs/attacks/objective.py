"""Objectives that attacks minimise: one number per image, negative if misclassified (except for cross-entropy)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

Objective = Literal["margin", "dlr", "cross_entropy"]
"""`margin` and `dlr` give the same steps at any logit scale; `cross_entropy` does not, and is never a default."""


def margin(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """f_y - max_{j != y} f_j: negative where the image is misclassified."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return own - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def gap(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """f_y - f_target, with one target per image."""
    own, other = logits.gather(1, torch.stack([y, target], 1)).unbind(1)
    return own - other


def likeliest_classes(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], count: int) -> Int[Tensor, "batch few"]:
    """The other classes of highest logit, highest first; at most `count`. NaN comes last; ties go to the first."""
    finite = logits.nan_to_num(nan=torch.finfo(logits.dtype).min)
    order = finite.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, : min(count, logits.shape[1] - 1)]


def misclassified(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Which logits are misclassified; those that are not finite are."""
    return (logits.argmax(1) != y) | ~logits.isfinite().all(1)


def input_gradient(value: Float[Tensor, ""], x: Tensor, keep: bool = False) -> Tensor:
    """d value / d x; 0 where it is not finite, or the model ignores its input. `keep`: retain the graph for another gradient."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def dlr(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """(f_y - max_{j != y} f_j) / (f_(1) - f_(3)), sorted logits; f_(last) with fewer than three classes.

    Source: Croce & Hein, ICML 2020.
    """
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - ordered[:, min(2, logits.shape[1] - 1)]
    return margin(logits, y) / spread.clamp_min(1e-12)


def targeted_dlr(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """(f_y - f_t) / (f_(1) - (f_(3) + f_(4)) / 2), sorted logits; needs four classes.

    Source: Croce & Hein, ICML 2020.
    """
    top = logits.topk(4, dim=1).values
    return gap(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)


def objective(kind: Objective, logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The named objective; all are minimised."""
    if kind == "margin":
        return margin(logits, y)
    if kind == "dlr":
        return dlr(logits, y)
    return -functional.cross_entropy(logits, y, reduction="none")
