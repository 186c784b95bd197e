"""Branch and bound: a row that falls short is bounded on both sides of a kink, and so on, until every part is proved."""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.lagrangian import Ball, Tilt
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rows import Rows, Tilts, doubled, kinks_of, valued
from robustbench_rkhs.runtime.clock import ask

BATCH = 16
"""Parts that are split at once."""
TRIED = 8
"""Kinks that are tried for each part."""
ASCENT = Search(40, 0.1)
"""The search on each new part, from the slopes and multipliers of the whole."""


class Branched(NamedTuple):
    """How a row was settled."""

    proved: bool
    """Every part was proved above zero."""
    parts: int
    """Parts that were bounded."""


class Split(NamedTuple):
    """Kinks to split, one for each new pair of parts."""

    of: Int[Tensor, " parts"]
    """The part that is split."""
    layer: Int[Tensor, " parts"]
    """Index of the kink's layer among `kinks_of`."""
    unit: Int[Tensor, " parts"]
    """The value in its layer."""


def branched(rows: Rows, tilts: Tilts, target: Float64[Tensor, " one"], most: int) -> Branched:
    r"""Whether one row is above zero over its region, proved on at most `most` parts.

    A part is the region where some values before kinks are at most, others at least zero: the intervals of these values are
    cut at zero. The bound of `lagrangian` holds on it for any slopes and multipliers, since it only uses that the inputs of
    the kink lie in their ball and interval. Both sides of a split cover the part, so a row above zero on every part is above zero.
    No multiplier is needed for a split: a slope beyond that of the side that is left is that multiplier.

    The parts with the best bounds come first, which keeps their list short. Kinks with the most negative share of the constant are
    tried with the slopes at hand; the pair with the best worse side is kept. Each part is proved in float64 with its rounding.
    """
    whole, count = [(float("-inf"), rows, tilts)], 0
    while whole:
        ask()
        if count >= most:
            return Branched(False, count)
        whole.sort(key=lambda part: -part[0])
        now, whole = whole[:BATCH], whole[BATCH:]
        joined, slopes = _joined([part for _, part, _ in now]), _together([tilt for _, _, tilt in now])
        chosen = _chosen(joined, slopes)
        if chosen is None:  # no kink is left that could lie on both sides
            return Branched(False, count)
        parts, begun = split(joined, slopes, chosen)
        best = optimised(parts, begun, target.expand(len(parts.image)), ASCENT)
        value = valued(parts, doubled(best), True)[0]
        count += len(value)
        for at in (value <= 0).nonzero().flatten().tolist():
            one = torch.tensor([at])
            whole.append((float(value[at]), parts.of(one), _of(best, one)))
    return Branched(True, count)


def split(rows: Rows, tilts: Tilts, where: Split) -> tuple[Rows, Tilts]:
    """Both sides of each kink, at most zero and at least zero in turn, with the slope of that side."""
    both = rows.of(where.of.repeat_interleave(2))._replace(image=torch.arange(2 * len(where.of), device=where.of.device))
    paths = [step.path for step in kinks_of(rows.steps)]
    tilts = _of(tilts, where.of.repeat_interleave(2))
    regions = {}
    for number, (path, step) in enumerate(zip(paths, kinks_of(both.steps), strict=True)):
        center, radius = step.before.center.flatten(1).clone(), step.before.radius.flatten(1).clone()
        slope = tilts[path].slope.flatten(1).clone()
        at = (where.layer == number).nonzero().flatten()
        for side, limit in ((0, step.before.lower), (1, step.before.upper)):
            row, unit = 2 * at + side, where.unit[at]
            half = limit.flatten(1)[row, unit] / 2  # exact, and so is its sum or difference with itself
            center[row, unit], radius[row, unit], slope[row, unit] = half, half.abs(), float(side)
        regions[path] = Region(center.view_as(step.before.center), radius.view_as(step.before.radius))
        tilts[path] = Tilt(slope.view_as(tilts[path].slope), tilts[path].multiplier)
    return both._replace(steps=_placed(both.steps, regions)), tilts


def _placed(steps: list[Step], regions: dict[str, Region]) -> list[Step]:
    return [
        step._replace(
            before=regions.get(step.path, step.before), branches=tuple(_placed(branch, regions) for branch in step.branches)
        )
        for step in steps
    ]


def _chosen(rows: Rows, tilts: Tilts) -> Split | None:
    """The kink of each part whose worse side is bounded best; None where a part has none left."""
    shares: dict[str, Tensor] = {}
    valued(rows, doubled(tilts), False, shares)
    kinks = kinks_of(rows.steps)
    unsure = [((step.before.lower < 0) & (step.before.upper > 0)).flatten(1) for step in kinks]
    parts_of = [torch.where(free, shares[step.path].flatten(1), torch.inf) for free, step in zip(unsure, kinks, strict=True)]
    score = torch.cat(parts_of, 1)
    if bool(score.isinf().all(1).any()):
        return None
    tried = min(TRIED, score.shape[1])
    picked = score.topk(tried, largest=False)
    sizes = torch.tensor([free.shape[1] for free in unsure], device=score.device)
    ends = sizes.cumsum(0)
    where = picked.indices.flatten()
    layer = torch.searchsorted(ends, where, right=True)
    number = torch.arange(len(score), device=score.device)
    of, unit = number.repeat_interleave(tried), where - (ends - sizes)[layer]
    parts, begun = split(rows, tilts, Split(of, layer, unit))
    value = valued(parts, doubled(begun), False)[0].view(len(score), tried, 2)
    goodness = (value.amin(2) + 0.1 * value.amax(2)).masked_fill(picked.values.isinf(), -torch.inf)
    best = goodness.argmax(1) + tried * number
    return Split(of[best], layer[best], unit[best])


def _joined(parts: list[Rows]) -> Rows:
    """Several batches as one."""
    first, paths = parts[0], list(parts[0].balls)
    lines = [torch.cat([part.lines[k] for part in parts]) for k in (0, 1)]  # type: ignore[misc]
    balls = {path: Ball(*(torch.cat([part.balls[path][k] for part in parts]) for k in (0, 1))) for path in paths}
    steps = _joined_steps([part.steps for part in parts])
    return Rows(
        steps, first.lines._replace(slopes=lines[0], offsets=lines[1]), balls, torch.arange(len(lines[0]), device=lines[0].device)
    )


def _joined_steps(runs: list[list[Step]]) -> list[Step]:
    found = []
    for steps in zip(*runs, strict=True):
        center, radius = (torch.cat([step.before[k] for step in steps]) for k in (0, 1))
        sizes = [step.size for step in steps if step.size is not None]
        branches = tuple(_joined_steps(list(branch)) for branch in zip(*(step.branches for step in steps), strict=True))
        region = steps[0].before._replace(center=center, radius=radius)
        found.append(steps[0]._replace(before=region, size=torch.cat(sizes) if sizes else None, branches=branches))
    return found


def _together(tilts: list[Tilts]) -> Tilts:
    return {path: Tilt(*(torch.cat([one[path][k] for one in tilts]) for k in (0, 1))) for path in tilts[0]}


def _of(tilts: Tilts, which: Tensor) -> Tilts:
    return {path: Tilt(tilt.slope[which], tilt.multiplier[which]) for path, tilt in tilts.items()}
