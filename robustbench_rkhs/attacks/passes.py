"""Logits and gradients of a model, from one forward pass and one or more backward passes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.hyperplane import distance_to_plane
from robustbench_rkhs.attacks.objective import input_gradient
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.clock import ask

Value = Callable[[Tensor, Tensor], Tensor]
"""(logits, rows) -> one number per row, to be minimised; `rows`: the index of the queried image behind each row of logits."""


class Slope(NamedTuple):
    """The results of a forward and a backward pass for some images."""

    logits: Float[Tensor, "some classes"]
    value: Float[Tensor, " some"]
    gradient: Float[Tensor, "some *image"]
    """d value / d image; 0 where it is not finite, or the model ignores the image."""


def slope_of(model: nn.Module, images: Float[Tensor, "some *image"], rows: Int[Tensor, " some"], value: Value) -> Slope:
    """One forward and one backward pass of any model."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        lowered = value(logits, rows)
        gradient = input_gradient(lowered.sum(), leaf)
    return Slope(logits.detach(), lowered.detach(), gradient)


def jacobian_of(
    model: nn.Module, images: Float[Tensor, "some *image"], classes: Int[Tensor, "some few"] | None = None
) -> tuple[Float[Tensor, "some classes"], Float[Tensor, "some few *image"]]:
    """Logits of any model and the gradient of every logit, or of those of each image's `classes`."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        asked = logits if classes is None else logits.gather(1, classes)
        last = asked.shape[1] - 1
        columns = []
        for k in range(last + 1):
            ask()
            columns.append(input_gradient(asked[:, k].sum(), leaf, keep=k < last))
    return logits.detach(), torch.stack(columns, 1)


def boundaries_of(
    model: nn.Module, images: Float[Tensor, "some *image"], y: Int[Tensor, " some"], norm: Norm
) -> tuple[Float[Tensor, "some classes"], Float[Tensor, "some classes"]]:
    """Logits, and the linearised distance to the boundary of each class; infinite for the image's own label.

    One gradient is held at a time: a thousand classes take no more memory than two. Cost: a backward pass per class.
    """
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        gaps, far = logits.gather(1, y[:, None]) - logits, []
        for k in range(logits.shape[1]):
            ask()
            gradient = input_gradient(gaps[:, k].sum(), leaf, keep=k + 1 < logits.shape[1])
            far.append(distance_to_plane(gaps[:, k].detach(), gradient, norm))
    return logits.detach(), torch.stack(far, 1).scatter(1, y[:, None], torch.inf)
