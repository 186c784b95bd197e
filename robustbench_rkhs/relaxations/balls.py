"""Regions of every layer from proved balls: what enters a layer moves by at most its Lipschitz bound times the radius."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.lipschitz.euclidean import lengths
from robustbench_rkhs.relaxations.full_crown import Tighten, keep, proved_trace
from robustbench_rkhs.relaxations.interval import Step, Trace, Walk, trace
from robustbench_rkhs.relaxations.interval import through as through
from robustbench_rkhs.relaxations.lagrangian import Ball
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rounding import LEAST, UNIT, most, rounded, widened

MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers whose rows have norms of their own."""


def balls_of(
    model: nn.Module, x: Float64[Tensor, "batch *image"], radius: Float64[Tensor, " batch"], reach: Mapping[str, float]
) -> dict[str, Ball]:
    r"""A proved l2 ball for what enters each layer, by path, for images within `radius` (l2) of each image.

    .. math:: \lVert h_k(x') - \hat h_k \rVert_2 \le L_k \lVert x' - x \rVert_2 + \lVert h_k(x) - \hat h_k \rVert_2

    `reach`: the Lipschitz bounds L_k by path; infinite where there is none. The second term is the rounding of the computed
    centre: the regions of `proved_trace` around a single point. Cost: three forward passes.
    """
    found: dict[str, Ball] = {}
    _visit(proved_trace(model, Region(x, torch.zeros_like(x)), False).steps, radius, reach, found)
    return found


def _visit(steps: list[Step], radius: Tensor, reach: Mapping[str, float], found: dict[str, Ball]) -> None:
    for step in steps:
        off = lengths(step.before.radius.flatten(1))
        size = (reach.get(step.path, math.inf) * radius + off) * (1 + 8 * UNIT) + LEAST
        found[step.path] = Ball(step.before.center, size)
        for branch in step.branches:
            _visit(branch, radius, reach, found)


def ball_trace(model: nn.Module, region: Region, balls: Mapping[str, Ball], tighten: Tighten = keep) -> Trace:
    """`proved_trace`, where the region after a linear map is also that of the ball before it: the radius times the rows' norms."""

    def narrowed(step: Step, after: Region) -> tuple[Step, Region]:
        step, after = rounded(step, after)
        ball = balls.get(step.path)
        if ball is None or not isinstance(step.module, MIXING) or not ball.radius.isfinite().all():
            return step, after
        shape = (-1, *[1] * (ball.center.dim() - 1))
        round_ = Region(ball.center, ball.radius.view(shape).expand_as(ball.center), True)
        own = step._replace(before=round_)
        return step, _common(after, rounded(own, through(step.module, round_))[1])

    return trace(model, region, walk=Walk(tighten, narrowed))


def _common(one: Region, other: Region) -> Region:
    """A box that contains what both contain."""
    lower, upper = torch.maximum(one.lower, other.lower), torch.minimum(one.upper, other.upper)
    center = (lower + upper) / 2
    radius = torch.maximum(upper - center, center - lower).clamp_min(0)
    return widened(Region(center, radius), 8 * UNIT * torch.maximum(most(one), most(other)))
