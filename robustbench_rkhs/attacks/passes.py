"""Logits and gradients of a model, from one forward pass and one or more backward passes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.hidden_logits import Outputs
from robustbench_rkhs.attacks.hyperplane import distance_to_plane
from robustbench_rkhs.attacks.objective import gap as gap_to
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
    wrong: Bool[Tensor, " some"]
    """Which images the model misclassifies."""


class Pass(NamedTuple):
    """One forward and backward pass: the model's output, the logits behind it, the value and its gradient."""

    own: Float[Tensor, "some classes"]
    logits: Float[Tensor, "some classes"]
    value: Float[Tensor, " some"]
    """In the images' type, whatever the logits' type: half, or float64."""
    gradient: Float[Tensor, "some *image"]


Read = Callable[[Tensor], Outputs]
"""A model, read by `hidden_logits.Reader`."""


def slope_of(read: Read, images: Float[Tensor, "some *image"], rows: Int[Tensor, " some"], value: Value) -> Pass:
    """One forward and one backward pass."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        own, logits = read(leaf)
        lowered = value(logits, rows)
        gradient = input_gradient(lowered.sum(), leaf)
    return Pass(own.detach(), logits.detach(), lowered.detach().to(images.dtype), gradient)


def gap_slopes(
    read: Read, images: Float[Tensor, "some *image"], y: Int[Tensor, " some"], classes: Int[Tensor, "some few"]
) -> Iterator[tuple[Outputs, Float[Tensor, " some"], Float[Tensor, "some *image"]]]:
    """f_y - f_k and its gradient, for each column k of `classes` in turn, from one forward pass.

    The gradient is that of the difference, so that what the classes share cancels before rounding. One is held at a time: a
    thousand classes take no more memory than two. Cost: a backward pass per column.
    """
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        own, logits = read(leaf)
    told = Outputs(own.detach(), logits.detach())
    for place, column in enumerate(classes.unbind(1)):
        ask()
        with torch.enable_grad():
            gap = gap_to(logits, y, column)
            gradient = input_gradient(gap.sum(), leaf, keep=place + 1 < classes.shape[1])
        yield told, gap.detach().to(images.dtype), gradient


def boundaries_of(
    model: Callable[[Tensor], Tensor], images: Float[Tensor, "some *image"], y: Int[Tensor, " some"], norm: Norm
) -> Float[Tensor, "some classes"]:
    """The linearised distance to the boundary of each class; infinite for its own label. Cost: a backward pass per class."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        gaps, far = logits.gather(1, y[:, None]) - logits, []
        for k in range(logits.shape[1]):
            ask()
            gradient = input_gradient(gaps[:, k].sum(), leaf, keep=k + 1 < logits.shape[1])
            far.append(distance_to_plane(gaps[:, k].detach(), gradient, norm))
    return torch.stack(far, 1).scatter(1, y[:, None], torch.inf)
