"""The nearest point of a hyperplane inside the box, exactly, for a batch of points."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_rkhs.attacks.ball import Box, Norm, per_image


def towards(
    points: Float[Tensor, "batch *image"],
    normal: Float[Tensor, "batch *image"],
    rise: Float[Tensor, " batch"],
    norm: Norm,
    box: Box,
) -> Float[Tensor, "batch *image"]:
    r"""The shortest offset that takes each point of the box onto its plane, without leaving the box.

    .. math:: \min_\delta \lVert \delta \rVert_p \;:\; \langle w, \delta \rangle = \text{rise}, \; x + \delta \in [0, 1]^d

    Each coordinate moves the way of w until its wall: delta_i = +-min(room_i, t v_i) with v = |w| (l2) or 1 (linf), and <w, delta>
    is concave and piecewise linear in t >= 0. Newton's iterates from t = 0 never pass the root and set more coordinates on
    their walls each time, so they end, on the exact piece, after at most d rounds (a handful in practice). A plane that the
    box does not reach: the box's corner the way of w. Zero w: no offset. Any scale of w and rise: both are divided by max |w_i|.
    Source: Croce & Hein, ICML 2020, section 3 (there by sorting).
    """
    flat, way = points.flatten(1), normal.flatten(1)
    peak = way.abs().amax(1, keepdim=True) if way.shape[1] else way.new_zeros(len(way), 1)
    largest = torch.finfo(points.dtype).max
    wanted = (rise[:, None] / torch.where(peak > 0, peak, 1)).nan_to_num(nan=0.0).clamp(-largest, largest)
    way = way / torch.where(peak > 0, peak, 1) * torch.where(wanted < 0, -1.0, 1.0).to(way)
    wanted, size = wanted.abs(), way.abs()
    speed = size if norm == "l2" else (size > 0).to(size)
    if box == "none":
        slope = (size * speed).sum(1, keepdim=True)
        offset = speed * (wanted / torch.where(slope > 0, slope, 1))
    else:
        room = torch.where(way > 0, 1 - flat, flat).clamp_min(0)
        offset = _filled(room, size, speed, wanted)
    return torch.where(way < 0, -offset, offset).view_as(points)


def _filled(room: Tensor, size: Tensor, speed: Tensor, wanted: Tensor) -> Tensor:
    """min(room, t speed) for the t at which the sum of size times it is `wanted`; room where no t is enough."""
    slope, capacity = size * speed, size * room
    free = (slope > 0) & (room > 0)
    while True:
        left = (wanted - capacity.masked_fill(free, 0).sum(1, keepdim=True)).clamp_min(0)
        along = slope.masked_fill(~free, 0).sum(1, keepdim=True)
        offset = speed * (left / torch.where(along > 0, along, 1))
        full = free & (offset >= room)
        if not full.any():
            return torch.where(free, offset, room * (size > 0))
        free &= ~full


def reach(offset: Float[Tensor, "batch *image"], norm: Norm) -> Float[Tensor, "batch ..."]:
    """Length of each offset, shaped to broadcast over images."""
    flat = offset.flatten(1)
    return per_image(flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1), offset)
