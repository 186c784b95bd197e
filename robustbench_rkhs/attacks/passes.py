"""One forward pass, and one backward or more, of any model: what attacks learn from."""

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
"""(logits, rows) -> one number a row, to be lowered; `rows`: which of the images asked about these logits belong to."""


class Slope(NamedTuple):
    """What a forward and a backward pass say of some images."""

    logits: Float[Tensor, "some classes"]
    value: Float[Tensor, " some"]
    gradient: Float[Tensor, "some *image"]
    """d value / d image; 0 where it is not finite, or the model ignores the image."""


def slope_of(model: nn.Module, images: Float[Tensor, "some *image"], rows: Int[Tensor, " some"], value: Value) -> Slope:
    """One pass forward and one backward of any model."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        lowered = value(logits, rows)
        gradient = input_gradient(lowered.sum(), leaf)
    return Slope(logits.detach(), lowered.detach(), gradient)


def jacobian_of(
    model: nn.Module, images: Float[Tensor, "some *image"], classes: Int[Tensor, "some few"] | None = None
) -> tuple[Float[Tensor, "some classes"], Float[Tensor, "some few *image"]]:
    """Answers of any model and the gradient of every logit, or of those of each image's `classes`."""
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
    """Answers, and how far the boundary to each class is by linearisation; infinite to the image's own.

    One gradient at a time is held: a thousand classes take no more memory than two. Cost: a backward pass a class.
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
