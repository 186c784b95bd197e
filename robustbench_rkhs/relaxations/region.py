"""Regions that contain every value of a layer: boxes and axis-aligned ellipsoids, one per image."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_rkhs.nodes.threat_model import Box, Norm


class Region(NamedTuple):
    r"""{ z : |z_i - c_i| <= r_i }, or, where `round`, { z : sum_i ((z_i - c_i) / r_i)^2 <= 1 }, which lies inside it."""

    center: Float[Tensor, "batch *shape"]
    """c."""
    radius: Float[Tensor, "batch *shape"]
    """r >= 0."""
    round: bool = False
    """True: the ellipsoid; an l2 ball stays an ellipsoid through layers that scale each value separately."""
    unit: bool = False
    """True: only what also lies in [0, 1], widened to the centre where that lies outside. Kept for the image alone."""

    @property
    def lower(self) -> Float[Tensor, "batch *shape"]:
        return self.center - self.radius

    @property
    def upper(self) -> Float[Tensor, "batch *shape"]:
        return self.center + self.radius


def between(lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]) -> Region:
    """The box of these bounds."""
    return Region((upper + lower) / 2, (upper - lower) / 2)


def ball(x: Float[Tensor, "batch *image"], eps: float | Tensor, norm: Norm, box: Box = "unit") -> Region:
    """The ball of radius `eps` (one, or one per image) around each image.

    With `box: unit`, a ball is intersected with [0, 1] (an image outside stays included); for an l2 ball that is a mark on the
    region, which only the bounds of linear functions of the image read (`unit_box`). Float16 and bfloat16 are widened.
    """
    x = wide(x)
    radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 1)).expand_as(x)
    if norm == "l2":
        return Region(x, radius, round=True, unit=box == "unit")
    if box == "none":
        return Region(x, radius)
    return between(torch.minimum((x - radius).clamp(0, 1), x), torch.maximum((x + radius).clamp(0, 1), x))


def wide(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()
