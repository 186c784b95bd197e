"""The model linearised at the images: the classes whose decision boundary is nearest."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.hyperplane import distance_to_plane


class Near(NamedTuple):
    """Image positions, repeated once per chosen class, and the gap f_y - f_class there."""

    at: Int[Tensor, " rows"]
    classes: Int[Tensor, " rows"]
    gap: Float[Tensor, " rows"]
    gradient: Float[Tensor, "rows *image"]
    distance: Float[Tensor, " rows"]
    """Distance to the plane where the linearised gap is 0."""


def nearest_classes(engine: Engine, at: Int[Tensor, " some"], classes: Int[Tensor, "some few"], targets: int) -> Near:
    """The `targets` of these classes whose linearised boundary is nearest, nearest first.

    Cost: one forward pass, and one backward pass for each of these classes and for the image's label.
    """
    y = engine.y[at]
    asked = torch.cat([y[:, None], classes], 1)
    logits, gradients = engine.jacobian(at, engine.x[at], asked)
    gaps = (logits.gather(1, y[:, None]) - logits.gather(1, classes)).nan_to_num(nan=0.0)
    slopes = gradients[:, :1] - gradients[:, 1:]
    lengths = distance_to_plane(gaps.flatten(), slopes.flatten(0, 1), engine.norm).view_as(gaps)
    order = lengths.argsort(dim=1, stable=True)[:, :targets]
    row = torch.arange(len(at), device=at.device)[:, None]
    several = (classes.gather(1, order), gaps.gather(1, order), slopes[row, order], lengths.gather(1, order))
    return Near(at.repeat_interleave(order.shape[1]), *(values.flatten(0, 1) for values in several))
