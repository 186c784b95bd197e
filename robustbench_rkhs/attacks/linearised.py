"""A model as its linearisation sees it: gaps to the likeliest other classes, and the nearest point of a plane in the box."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.ball import Box, Norm, per_image
from robustbench_rkhs.attacks.engine import Engine, Value


class Near(NamedTuple):
    """Images by position, each once for every class chosen, and the gap f_y - f_class there."""

    at: Int[Tensor, " rows"]
    classes: Int[Tensor, " rows"]
    gap: Float[Tensor, " rows"]
    gradient: Float[Tensor, "rows *image"]
    reach: Float[Tensor, " rows"]
    """Distance to where the linearised gap is 0."""


def nearest_classes(engine: Engine, at: Int[Tensor, " some"], classes: Int[Tensor, "some few"], targets: int) -> Near:
    """The `targets` of these classes whose linearised boundary is nearest, nearest first.

    Cost: a forward pass, and a backward pass for each of the classes and the image's own.
    """
    y = engine.y[at]
    asked = torch.cat([y[:, None], classes], 1)
    logits, gradients = engine.jacobian(at, engine.x[at], asked)
    gaps = (logits.gather(1, y[:, None]) - logits.gather(1, classes)).nan_to_num(nan=0.0)
    slopes = gradients[:, :1] - gradients[:, 1:]
    lengths = reach(gaps.flatten(), slopes.flatten(0, 1), engine.norm).view_as(gaps)
    order = lengths.argsort(dim=1, stable=True)[:, :targets]
    row = torch.arange(len(at), device=at.device)[:, None]
    several = (classes.gather(1, order), gaps.gather(1, order), slopes[row, order], lengths.gather(1, order))
    return Near(at.repeat_interleave(order.shape[1]), *(values.flatten(0, 1) for values in several))


def towards(y: Int[Tensor, " some"], target: Int[Tensor, " some"]) -> Value:
    """f_y - f_target, of each row its own."""
    return lambda logits, rows: (logits.gather(1, y[rows, None]) - logits.gather(1, target[rows, None])).squeeze(1)


def likeliest(logits: Float[Tensor, "some classes"], y: Int[Tensor, " some"], candidates: int) -> Int[Tensor, "some few"]:
    """The other classes of highest logit, highest first; at most `candidates`."""
    others = logits.nan_to_num(nan=-torch.inf).scatter(1, y[:, None], -torch.inf)
    others = others.argsort(dim=1, descending=True, stable=True)
    return others[:, : min(candidates, logits.shape[1] - 1)]


def dual_length(gradient: Float[Tensor, "some *image"], norm: Norm) -> Float[Tensor, " some"]:
    """The length that a gap is divided by for the distance to its plane: l2 for l2, l1 for linf."""
    return gradient.flatten(1).norm(p=2 if norm == "l2" else 1, dim=1)


def reach(gap: Float[Tensor, " some"], gradient: Float[Tensor, "some *image"], norm: Norm) -> Float[Tensor, " some"]:
    """|gap| / ||gradient||_*: how far the plane is, were there no box; infinite where there is no slope."""
    peak = gradient.flatten(1).abs().amax(1)
    length = dual_length(gradient / per_image(torch.where(peak > 0, peak, 1), gradient), norm)
    far = gap.abs() / peak / torch.where(peak > 0, length, 1)
    return torch.where((peak > 0) & ~far.isnan(), far, torch.inf)


def onto_plane(
    x: Float[Tensor, "some *image"], gap: Float[Tensor, " some"], gradient: Float[Tensor, "some *image"], norm: Norm, box: Box
) -> Float[Tensor, "some *image"]:
    r"""The shortest step from x to {x + d: gap + <gradient, d> = 0} that stays in the box; as far as it goes where none does.

    .. math:: d_i = -s_i \min(\lambda b_i, r_i), \qquad \sum_i |g_i| \min(\lambda b_i, r_i) = |gap|

    s: sign of the gradient times that of the gap; r: room up to the box; b: |g| in l2, 1 in linf. lambda exactly, by sorting the
    places where a pixel meets its side. No slope: no step.
    """
    slope = gradient.flatten(1)
    peak = slope.abs().amax(1, keepdim=True)
    peak = torch.where(peak > 0, peak, 1)
    slope, drop = slope / peak * gap.sign()[:, None], gap.abs()[:, None] / peak
    size = slope.abs()
    share = size if norm == "l2" else (size > 0).to(x.dtype)
    weight = size * share
    if box == "none":
        factor = drop / weight.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return (-slope.sign() * share * factor).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).view_as(x)
    flat = x.flatten(1)
    room = torch.where(slope > 0, flat, 1 - flat).clamp_min(0)
    meets = torch.where(share > 0, room / share, torch.inf)
    order = meets.argsort(dim=1)
    meets, weight, full = (values.gather(1, order) for values in (meets, weight, size * room))
    full = full.cumsum(1) - full  # what the pixels that met their side before bring
    free = weight.flip(1).cumsum(1).flip(1)  # slope of what is still free
    brings = full + free * meets.nan_to_num(posinf=0.0)
    first = (brings < drop).sum(1, keepdim=True).clamp_max(flat.shape[1] - 1)
    factor = (drop - full.gather(1, first)) / free.gather(1, first).clamp_min(torch.finfo(x.dtype).tiny)
    step = torch.minimum(share * factor.clamp_min(0), torch.where(share > 0, room, 0))
    return (-slope.sign() * step).nan_to_num(nan=0.0).view_as(x)
