"""Exact projections onto affine decision boundaries, inside the box."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_rkhs.attacks.ball import distances, per_image
from robustbench_rkhs.nodes.threat_model import Box, Norm


def distance_to_plane(gap: Float[Tensor, " some"], gradient: Float[Tensor, "some *image"], norm: Norm) -> Float[Tensor, " some"]:
    """|gap| / ||gradient||_*: the distance to gap + <gradient, d> = 0 without the box; infinite where the gradient is zero."""
    peak = gradient.flatten(1).abs().amax(1)
    steep = torch.where(peak > 0, peak, 1)
    length = (gradient / per_image(steep, gradient)).flatten(1).norm(p=2 if norm == "l2" else 1, dim=1)
    far = gap.abs() / steep / torch.where(peak > 0, length, 1)
    return torch.where((peak > 0) & ~far.isnan(), far, torch.inf)


def distance_in_box(
    x: Float[Tensor, "some *image"], gap: Float[Tensor, " some"], gradient: Float[Tensor, "some *image"], norm: Norm, box: Box
) -> Float[Tensor, " some"]:
    """The distance to gap + <gradient, d> = 0 inside the box; planes that miss the box come after all others, by plain distance."""
    plain = distance_to_plane(gap, gradient, norm)
    if box == "none":
        return plain
    offset = onto_plane(x, gap, gradient, norm, box)
    far = distances(x, x + offset, norm).to(plain)
    left = gap + (gradient * offset).flatten(1).sum(1)
    reached = (left.abs() <= 1e-3 * gap.abs()) & plain.isfinite()
    return torch.where(reached, far, plain + x[:1].numel())


def onto_plane(
    x: Float[Tensor, "some *image"], gap: Float[Tensor, " some"], gradient: Float[Tensor, "some *image"], norm: Norm, box: Box
) -> Float[Tensor, "some *image"]:
    """The shortest step from x to {x + d: gap + <gradient, d> = 0} that stays in the box; see `offsets`."""
    return offsets(x.flatten(1)[:, None], gradient.flatten(1), -gap[:, None], norm, box).view_as(x)


def offsets(
    points: Float[Tensor, "batch points size"],
    normal: Float[Tensor, "batch size"],
    rise: Float[Tensor, "batch points"],
    norm: Norm,
    box: Box,
) -> Float[Tensor, "batch points size"]:
    r"""The shortest offset that raises each point by `rise` along its row's normal without leaving the box.

    .. math:: \min_\delta \lVert \delta \rVert_p \;:\; \langle w, \delta \rangle = \text{rise}, \; x + \delta \in [0, 1]^d

    Each coordinate moves in the direction of w up to the face of the box: delta_i = +-min(room_i, t v_i) with v = |w| (l2) or
    1 (linf), and <w, delta> is concave and piecewise linear in t >= 0. Newton's iterates from t = 0 never pass the root and bring
    more coordinates to a face each time, so they end, on the exact piece, after at most d rounds (a handful in practice). If the
    plane misses the box, the result is the box's corner in the direction of w. Zero w: no offset. w and rise may have any scale:
    both are divided by max |w_i|.
    Source: Croce & Hein, ICML 2020, section 3 (there by sorting).
    """
    peak = normal.abs().amax(1, keepdim=True) if normal.shape[1] else normal.new_zeros(len(normal), 1)
    peak = torch.where(peak > 0, peak, 1)
    largest = torch.finfo(points.dtype).max
    wanted = (rise / peak).nan_to_num(nan=0.0).clamp(-largest, largest)[:, :, None]
    way = (normal / peak)[:, None]
    size = way.abs()
    speed = size if norm == "l2" else (size > 0).to(size)
    slope = size * speed
    if box == "none":
        total = slope.sum(2, keepdim=True)
        return (way if norm == "l2" else way.sign()) * (wanted / torch.where(total > 0, total, 1))
    up = (way > 0) == (wanted >= 0)
    room = torch.where(up, 1 - points, points).clamp_min(0)
    offset = filled(room, size, speed, slope, wanted.abs())
    return torch.where(up, offset, -offset)


def filled(room: Tensor, size: Tensor, speed: Tensor, slope: Tensor, wanted: Tensor) -> Tensor:
    """min(room, t speed), with t such that its sum weighted by `size` is `wanted`; `room` where no t is enough.

    `slope`: size times speed. Coordinates are the last dimension; the result is 0 where `size` is 0.
    """
    room, largest = torch.where(size > 0, room, 0), torch.finfo(room.dtype).max
    capacity = size * room
    free = room > 0
    while True:
        left = (wanted - torch.where(free, 0, capacity).sum(-1, keepdim=True)).clamp_min(0)
        along = torch.where(free, slope, 0).sum(-1, keepdim=True)
        offset = speed * (left / along).nan_to_num(nan=0.0, posinf=largest)
        full = free & (offset >= room)
        if not full.any():
            return torch.where(free, offset, room)
        free &= ~full
