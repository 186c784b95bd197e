"""Rows: linear functions of the logits, bounded with any slopes and multipliers at the kinks."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from robustbench_rkhs.relaxations.full_crown import KINKS, least_proved
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.lagrangian import Ball, Tilt, first_multiplier, lagrangian
from robustbench_rkhs.relaxations.linear_bounds import Lines, chain_back, least
from robustbench_rkhs.relaxations.planes import Bent

Tilts = dict[str, Tilt]
"""Slopes and multipliers by the path of the kink."""


class Rows(NamedTuple):
    """Linear functions of the logits, one for each entry of the batch, each to be bounded over its own region."""

    steps: list[Step]
    """The network and the regions, in float64."""
    lines: Lines
    """One row for each entry."""
    balls: dict[str, Ball]
    """By the path of the kink."""
    image: Int[Tensor, " batch"]
    """The image that each row is about: once one of its rows is given up, the others do not matter."""

    def of(self, which: Int[Tensor, " some"]) -> "Rows":
        """Some of the rows."""
        lines = Lines(self.lines.slopes[which], self.lines.offsets[which])
        balls = {path: Ball(ball.center[which], ball.radius[which]) for path, ball in self.balls.items()}
        return Rows(indexed(self.steps, which), lines, balls, self.image[which])

    def to(self, dtype: torch.dtype) -> "Rows":
        """In another type, without rounding allowed for."""
        lines = Lines(self.lines.slopes.to(dtype), self.lines.offsets.to(dtype))
        balls = {path: Ball(ball.center.to(dtype), ball.radius.to(dtype)) for path, ball in self.balls.items()}
        return Rows(cast(self.steps, dtype), lines, balls, self.image)


def indexed(steps: list[Step], which: Int[Tensor, " some"]) -> list[Step]:
    """The steps for some of the entries of the batch."""
    return [
        step._replace(
            before=step.before._replace(center=step.before.center[which], radius=step.before.radius[which]),
            size=None if step.size is None else step.size[which],
            branches=tuple(indexed(branch, which) for branch in step.branches),
        )
        for step in steps
    ]


def cast(steps: list[Step], dtype: torch.dtype) -> list[Step]:
    return [
        step._replace(
            module=step.module if step.branches else copy.deepcopy(step.module).to(dtype),
            before=step.before._replace(center=step.before.center.to(dtype), radius=step.before.radius.to(dtype)),
            size=None,
            branches=tuple(cast(branch, dtype) for branch in step.branches),
        )
        for step in steps
    ]


def bending(steps: list[Step], bend: Callable[[Step], Callable[[Tensor, float], Bent]]) -> list[Step]:
    """The steps with this bound at every kink."""
    return [
        step._replace(size=None, bend=bend(step))
        if isinstance(step.module, KINKS)
        else step._replace(branches=tuple(bending(branch, bend) for branch in step.branches))
        for step in steps
    ]


def started(rows: Rows) -> Tilts:
    """Where a search begins: the slopes of the network at the image, and the best multiplier for them, from the last kink back."""
    found: Tilts = {}

    def bend(step: Step) -> Callable[[Tensor, float], Bent]:
        def bound(c: Tensor, left: float) -> Bent:
            ball, (lower, upper) = rows.balls[step.path], (step.before.lower, step.before.upper)
            slope = (ball.center > 0).to(c)[:, None].expand_as(c)
            tilt = Tilt(slope, first_multiplier(c, left, lower, upper, ball, slope))
            found[step.path] = tilt
            return lagrangian(c, left, lower, upper, ball, tilt, False)

        return bound

    if rows.steps:
        chain_back(bending(rows.steps, bend), rows.lines._replace(errors=None))
    return found


def valued(rows: Rows, tilts: Tilts, proved: bool, parts: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Lower bounds of the rows, and the share of the region's radius within which they stay above zero.

    `proved`: in real arithmetic. `parts`: filled with each coordinate's share of the constant, by the path of the kink.
    """

    def bend(step: Step) -> Callable[[Tensor, float], Bent]:
        def bound(c: Tensor, left: float) -> Bent:
            region, tilt = step.before, tilts[step.path]
            found = lagrangian(c, left, region.lower, region.upper, rows.balls[step.path], tilt, proved)
            if parts is not None:
                parts[step.path] = found.parts
            return found

        return bound

    begun = rows.lines._replace(errors=torch.zeros_like(rows.lines.offsets) if proved else None)
    moved, region = chain_back(bending(rows.steps, bend), begun), rows.steps[0].before
    if not proved:
        value = least(moved, region)
        return value[:, 0], torch.zeros_like(value[:, 0])
    value, share = least_proved(moved, region)
    return value[:, 0].nan_to_num(nan=-math.inf), share[:, 0].nan_to_num(nan=0.0, posinf=math.inf)


def balls_at(balls: dict[str, Ball], steps: list[Step], which: Tensor) -> dict[str, Ball]:
    """The balls of the kinks among the steps, for some of the entries."""
    return {step.path: Ball(balls[step.path].center[which], balls[step.path].radius[which]) for step in kinks_of(steps)}


def kinks_of(steps: list[Step]) -> list[Step]:
    """The kinks of a network, branches included, in order."""
    found: list[Step] = []
    for step in steps:
        found += [step] if isinstance(step.module, KINKS) else []
        for branch in step.branches:
            found += kinks_of(branch)
    return found


def doubled(tilts: Tilts) -> Tilts:
    """In float64."""
    return {path: Tilt(tilt.slope.double(), tilt.multiplier.double()) for path, tilt in tilts.items()}


def tiltable(steps: list[Step]) -> bool:
    """Whether there is a kink whose slope is free."""
    return any(isinstance(step.module, KINKS) or any(map(tiltable, step.branches)) for step in steps)
