"""Intervals at kinks bounded anew, for the parts of a box."""

import torch
from torch import Tensor

from robustbench_rkhs.relaxations.ascent import Search
from robustbench_rkhs.relaxations.full_crown import KINKS, NUMBERS, widest
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.interval_rows import Ends, Frame, Parts, begun, interval_bounds, leaned
from robustbench_rkhs.relaxations.linear_bounds import Lines
from robustbench_rkhs.relaxations.rounding import UNIT
from robustbench_rkhs.relaxations.rows import kinks_of, tiltable
from robustbench_rkhs.runtime.clock import ask


def prefixes(steps: list[Step], before: list[Step] | None = None) -> dict[str, list[Step]]:
    """The steps from the image to each kink, by its path."""
    found: dict[str, list[Step]] = {}
    for number, step in enumerate(steps):
        here = (before or []) + steps[:number]
        if isinstance(step.module, KINKS):
            found[step.path] = here
        for branch in step.branches:
            found |= prefixes(branch, here)
    return found


def renewed(frame: Frame, single: Frame, ends: Parts, search: Search | None, paths: list[str]) -> dict[str, Ends]:
    """The intervals of parts, where those of uncertain units at these kinks, in order, are at most the bounds of single values.

    A unit's input x is bounded by rows x and -x from the image to it, with the intervals of the kinks before; so these hold for
    every image of the part. With `search`, slopes are optimised. Cost: two backward passes for each uncertain unit and part,
    or as many for each step of the search.
    """
    now = dict(ends)
    ways, fast = prefixes(frame.steps), prefixes(single.steps)
    for path in paths:
        way, known = ways[path], frame.kinks[path]
        step = next(one for one in kinks_of(frame.steps) if one.path == path)
        lower, upper = (end.clone() for end in now[path])
        unsure = ((lower < 0) & (upper > 0)).nonzero()
        if not len(unsure) or not tiltable(way):  # without a kink in between, intervals are what these bounds are
            continue
        shape, size = step.before.center.shape[1:], step.before.center[0].numel()
        for some in unsure.split(max(1, NUMBERS // (8 * max(widest(way), size)))):
            ask()
            part, unit = some.T
            both = torch.cat([part, part])
            number = torch.arange(len(both), device=both.device)
            ones = lower.new_zeros(len(both), size)
            ones[number, known.units[torch.cat([unit, unit])]] = torch.where(number < len(part), 1.0, -1.0).to(lower)
            lines = Lines(ones.view(1, len(both), *shape), lower.new_zeros(1, len(both)))
            here = {key: Ends(*(end[both] for end in one)) for key, one in now.items()}
            leans = begun(here)
            if search is not None:
                quick = Lines(lines.slopes.float(), lines.offsets.float())
                leans = leaned(single.before(fast[path]), quick, here, leans, torch.full((len(both),), torch.inf), search)
            bound: Tensor = interval_bounds(frame.before(way), lines, here, leans, True)[0]
            slack = 8 * UNIT * known.most[known.units[unit]]
            lower[part, unit] = torch.maximum(lower[part, unit], bound[: len(part)] - slack)
            upper[part, unit] = torch.minimum(upper[part, unit], -bound[len(part) :] + slack)
        now[path] = Ends(lower, upper)
    return now
