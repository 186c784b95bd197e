"""Intervals at kinks from optimised bounds of single values."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.full_crown import BENDS, KINKS, NUMBERS, keep, tighten, widest
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.lagrangian import Ball
from robustbench_rkhs.relaxations.linear_bounds import Lines
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rounding import UNIT, most, widened
from robustbench_rkhs.relaxations.rows import Rows, balls_at, doubled, indexed, started, tiltable, valued
from robustbench_rkhs.runtime.clock import ask


class Tightened(NamedTuple):
    """A hook of `trace`: intervals at kinks from bounds of single values, optimised like any other row."""

    balls: dict[str, Ball]
    """By path, for the batch of the trace."""
    rows: int
    """Layers with more uncertain values in an image are left as they are."""
    search: Search

    def __call__(self, module: nn.Module, steps: list[Step], region: Region) -> Region:
        """The region, where both bounds of every value that can lie on both sides of a kink are those of two rows."""
        if not isinstance(module, (*KINKS, *BENDS)) or not self.few(region):
            return keep(module, steps, region)
        region = tighten(module, steps, region)
        if not isinstance(module, KINKS) or not tiltable(steps):
            return region
        lower, upper = region.lower.flatten(1).clone(), region.upper.flatten(1).clone()
        unsure = (lower < 0) & (upper > 0)
        if not unsure.any():  # linear bounds know every sign
            return region
        for some in unsure.nonzero().split(max(1, NUMBERS // (2 * widest(steps)))):
            ask()
            place, unit = some.T
            rows = self.about(steps, region, place, unit)
            tilts = started(rows)
            best = optimised(rows, tilts, torch.full_like(rows.lines.offsets[:, 0], math.inf), self.search)
            bound = torch.maximum(valued(rows, tilts, True)[0], valued(rows, doubled(best), True)[0])
            below, above = bound[: len(some)], -bound[len(some) :]
            lower[place, unit] = torch.maximum(lower[place, unit], below)
            upper[place, unit] = torch.minimum(upper[place, unit], above)
        upper = torch.maximum(lower, upper)
        center = (lower + upper) / 2
        cut = Region(center, torch.maximum(upper - center, center - lower))
        shape = region.center.shape
        return widened(Region(cut.center.view(shape), cut.radius.view(shape)), 8 * UNIT * most(region))

    def few(self, region: Region) -> bool:
        """Whether no image has too many uncertain values to be bounded one by one."""
        return int(((region.lower < 0) & (region.upper > 0)).flatten(1).sum(1).max()) <= self.rows

    def about(self, steps: list[Step], region: Region, place: Tensor, unit: Tensor) -> Rows:
        """One row for each value, then one for minus each value."""
        both = torch.cat([place, place])
        ones = region.center.new_zeros(len(both), 1, region.center[0].numel())
        number = torch.arange(len(both), device=ones.device)
        ones[number, 0, torch.cat([unit, unit])] = torch.where(number < len(place), 1.0, -1.0).to(ones)
        lines = Lines(ones.unflatten(2, region.center.shape[1:]), ones.new_zeros(len(both), 1))
        return Rows(indexed(steps, both), lines, balls_at(self.balls, steps, both), number)
