"""Interval and linear bounds of values divided by their own standard deviation."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_rkhs.layers.standardised import Standardised
from robustbench_rkhs.relaxations.interval import Step, through
from robustbench_rkhs.relaxations.linear_bounds import Lines, back, bent
from robustbench_rkhs.relaxations.planes import Planes
from robustbench_rkhs.relaxations.region import Region, between
from robustbench_rkhs.relaxations.rounding import UNIT, magnitude


class Centred(NamedTuple):
    """Bounds of the values less their group's mean, and of their squares: (batch, groups, values)."""

    lower: Tensor
    upper: Tensor
    least: Tensor
    most: Tensor


def _centred(module: Standardised, region: Region) -> Centred:
    """c_i = (1 - 1/n) x_i - sum of the others / n, over the box."""
    center, radius = module.parts(region.center), module.parts(region.radius)
    count = center.shape[2]
    middle = center - center.mean(2, keepdim=True)
    spread = radius * (1 - 1 / count) + (radius.sum(2, keepdim=True) - radius) / count
    lower, upper = middle - spread, middle + spread
    squares = torch.stack([lower.square(), upper.square()])
    least = torch.where((lower < 0) & (upper > 0), 0.0, squares.amin(0))
    return Centred(lower, upper, least, squares.amax(0))


def _ends(module: Standardised, c: Centred) -> tuple[Tensor, Tensor]:
    """c_i / sqrt((c_i^2 + others) / n + eps) rises with c_i, and the others' squares draw it to zero."""
    count = c.lower.shape[2]
    least, most = (one.sum(2, keepdim=True) - one for one in (c.least, c.most))
    slack = 8 * (count + 8) * UNIT  # what the difference loses where one square is nearly the sum
    least, most = least - slack * c.least.sum(2, keepdim=True), most + slack * c.most.sum(2, keepdim=True)

    def value(z: Tensor, sign: int) -> Tensor:
        others = torch.where(sign * z >= 0, least.clamp_min(0), most)
        return z / ((z.square() + others) / count + module.eps).sqrt()

    limit = math.sqrt(max(count - 1, 0))  # of values whose sum is zero
    return value(c.lower, -1).clamp_min(-limit), value(c.upper, 1).clamp_max(limit)


@through.register
def _(module: Standardised, region: Region) -> Region:
    lower, upper = _ends(module, _centred(module, Region(region.center, region.radius)))
    return between(lower.reshape(region.center.shape), upper.reshape(region.center.shape))


def lines(module: Standardised, region: Region) -> Planes:
    r"""Lines in the centred values: y_i = c_i t with t = 1 / s in [t_0, t_1], so

    .. math:: \lvert y_i - \tfrac{t_0 + t_1}{2} c_i \rvert \le \tfrac{t_1 - t_0}{2} \lvert c_i \rvert

    or the interval of y_i, where that is narrower.
    """
    c = _centred(module, Region(region.center, region.radius))
    steep, flat = (1 / (one.mean(2, keepdim=True) + module.eps).sqrt() for one in (c.least, c.most))
    off = (steep - flat) / 2 * torch.maximum(c.lower.abs(), c.upper.abs())
    low, high = _ends(module, c)
    use = off <= (high - low) / 2
    slope = torch.where(use, (steep + flat) / 2, 0.0)
    depth, height = torch.where(use, -off, low), torch.where(use, off, high)
    shape = region.center.shape
    return Planes(slope.reshape(shape)[:, None], slope.reshape(shape), height.reshape(shape), depth.reshape(shape))


@back.register
def _(module: Standardised, step: Step, rows: Lines) -> Lines:
    slopes, offsets = bent(rows.slopes, lines(module, step.before))
    parts = slopes.reshape(*slopes.shape[:2], module.groups, -1)
    return Lines((parts - parts.mean(3, keepdim=True)).reshape(slopes.shape), rows.offsets + offsets)


@magnitude.register
def _(module: Standardised, size: Tensor) -> Tensor:
    """Of the values and their lines: rounding moves c by a few units of |x| and its mean, and y by that times 1 / sqrt(eps), and
    the root of the number of values besides where s rounds, too."""
    parts = module.parts(size)
    count = parts.shape[2]
    each = 8 * math.sqrt(count) * ((parts + parts.mean(2, keepdim=True)) / math.sqrt(module.eps) + 1)
    return each.reshape(size.shape)
