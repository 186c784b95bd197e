"""Branch and bound: a row that falls short is bounded on both sides of a kink, and so on, until every part is proved."""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.coupled_ascent import Choice, coupled
from robustbench_rkhs.relaxations.couplings import Chain, Curved, bounded, guessed
from robustbench_rkhs.relaxations.fixed_pattern import Way, fixed_tilts
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.lagrangian import Tilt
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rows import Rows, Tilts, doubled, kinks_of, valued
from robustbench_rkhs.runtime.clock import ask

BATCH = 32
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


class Leaf(NamedTuple):
    """A part that was proved."""

    way: Way
    tilts: Tilts
    """Of one row."""


class Parts(NamedTuple):
    """Parts of one row's region; all else is the same for all of them."""

    regions: dict[str, Region]
    """The intervals of each kink."""
    tilts: Tilts
    value: Float64[Tensor, " parts"]
    """Proved bounds."""
    ways: list[Way]

    def of(self, which: Int[Tensor, " some"]) -> "Parts":
        regions = {path: Region(one.center[which], one.radius[which]) for path, one in self.regions.items()}
        return Parts(regions, _of(self.tilts, which), self.value[which], [self.ways[at] for at in which.tolist()])


class Whole(NamedTuple):
    """The row that is bounded part by part."""

    rows: Rows
    chain: Chain | None
    curved: Curved | None
    """Curvatures that all parts share (`couplings`); None: balls and intervals alone."""

    def at(self, regions: dict[str, Region]) -> Rows:
        """The row once for each part."""
        count = len(next(iter(regions.values())).center)
        many = self.rows.of(self.rows.image.new_zeros(count))
        return many._replace(steps=_placed(many.steps, regions), image=torch.arange(count, device=many.image.device))

    def curves(self, count: int) -> Curved:
        assert self.curved is not None
        return self.curved.of(self.rows.image.new_zeros(count))

    def improved(self, rows: Rows, tilts: Tilts, target: Tensor) -> Tilts:
        if self.chain is None:
            return optimised(rows, tilts, target, ASCENT)
        return coupled(rows, Choice(tilts, {}), target, ASCENT, self.chain, self.curves(len(target))).tilts

    def proved(self, rows: Rows, tilts: Tilts) -> Tensor:
        if self.chain is None:
            return valued(rows, doubled(tilts), True)[0]
        return bounded(rows, doubled(tilts), self.curves(len(rows.image)), self.chain)

    def guessed(self, rows: Rows, tilts: Tilts, shares: dict[str, Tensor] | None = None) -> Tensor:
        if self.chain is None:
            return valued(rows, doubled(tilts), False, shares)[0]
        return guessed(rows, doubled(tilts), self.curves(len(rows.image)), self.chain, shares)

    def better(self, rows: Rows, tilts: Tilts, others: Tilts) -> tuple[Tilts, Tensor]:
        """Of two choices the one that bounds each part better, and its bounds."""
        one, other = self.guessed(rows, tilts), self.guessed(rows, others)
        for path, tilt in others.items():
            use = (one >= other).view(-1, *[1] * (tilt.slope.dim() - 1))
            slope = torch.where(use, tilts[path].slope, tilt.slope)
            tilts = {**tilts, path: Tilt(slope, torch.where(use.view(-1, 1), tilts[path].multiplier, tilt.multiplier))}
        return tilts, torch.maximum(one, other)


def branched(
    rows: Rows,
    choice: Choice,
    target: Float64[Tensor, " one"],
    most: int,
    chain: Chain | None = None,
    curved: Curved | None = None,
    leaves: list[Leaf] | None = None,
) -> Branched:
    r"""Whether one row is above zero over its region, proved on at most `most` parts.

    A part is the region where some values before kinks are at most, others at least zero: the intervals of these values are
    cut at zero. The bound of `lagrangian` (or, in a `chain` with curvatures, of `couplings`) holds on it for any slopes and
    multipliers, since it only uses that the inputs of the kink lie in their ball and interval. Both sides of a split cover the
    part, so a row above zero on every part is above zero.
    No multiplier is needed for a split: a slope beyond that of the side that is left is that multiplier. A part begins with the
    slopes of the whole, with which its bound is no lower, or with that of its side at the split, where this bounds it better.

    The parts with the best bounds come first, which keeps their list short. Kinks with the most negative share of the constant are
    tried with the slopes at hand; the pair with the best worse side is kept. Each part is proved in float64 with its rounding.
    Curvatures cost the same on a small part as on the whole: in a chain a part without an uncertain kink is bounded by
    intervals alone, with the slopes of `fixed_pattern`.
    `leaves`: filled with the parts that were proved.
    """
    whole, count = Whole(rows, chain, curved), 0
    regions = {step.path: Region(step.before.center, step.before.radius) for step in kinks_of(rows.steps)}
    left = Parts(regions, choice.tilts, torch.full_like(target, -torch.inf), [()])
    while len(left.value):
        ask()
        if count >= most:
            return Branched(False, count)
        order = left.value.argsort(descending=True)
        now, left = left.of(order[:BATCH]), left.of(order[BATCH:])
        chosen = _chosen(whole, now)
        if chosen is None:  # no kink is left that could lie on both sides
            return Branched(False, count)
        regions, tilts = split(now.regions, now.tilts, chosen)
        parts = whole.at(regions)
        tilts = whole.better(parts, tilts, _of(now.tilts, chosen.of.repeat_interleave(2)))[0]
        tilts = whole.improved(parts, tilts, target.expand(len(parts.image)))
        value = whole.proved(parts, tilts)
        count += len(value)
        here = Parts(regions, tilts, value, _ways(now, chosen))
        _settle(whole, here, target)
        if leaves is not None:
            proved = (here.value > 0).nonzero().flatten().tolist()
            leaves += [Leaf(here.ways[at], _of(here.tilts, torch.tensor([at]))) for at in proved]
        left = _together(left, here.of((here.value <= 0).nonzero().flatten()))
    return Branched(True, count)


def _settle(whole: Whole, parts: Parts, target: Tensor) -> None:
    """Bounds those parts of a chain that fall short and have no uncertain kink left as what they are, affine: in place."""
    if whole.chain is None:
        return
    certain = torch.stack([((one.lower >= 0) | (one.upper <= 0)).flatten(1).all(1) for one in parts.regions.values()]).all(0)
    at = (certain & (parts.value <= 0)).nonzero().flatten()
    if not len(at):
        return
    rows = whole.at(parts.of(at).regions)
    tilts = fixed_tilts(rows, [parts.ways[one] for one in at.tolist()], whole.chain.links, float(target))
    raised = valued(rows, doubled(tilts), True)[0]
    better = (raised > parts.value[at]).nonzero().flatten()
    parts.value[at[better]] = raised[better]
    for path, tilt in tilts.items():
        parts.tilts[path].slope[at[better]] = tilt.slope[better]
        parts.tilts[path].multiplier[at[better]] = tilt.multiplier[better]


def _ways(parts: Parts, where: Split) -> list[Way]:
    """To both sides of each split, as `split` orders them."""
    each = zip(where.of.tolist(), where.layer.tolist(), where.unit.tolist(), strict=True)
    return [(*parts.ways[of], (layer, unit, side)) for of, layer, unit in each for side in (0, 1)]


def split(regions: dict[str, Region], tilts: Tilts, where: Split) -> tuple[dict[str, Region], Tilts]:
    """Both sides of each kink, at most zero and at least zero in turn, with the slope of that side."""
    twice = where.of.repeat_interleave(2)
    found, tilts = {}, _of(tilts, twice)
    for number, (path, region) in enumerate(regions.items()):
        center, radius = region.center[twice].flatten(1), region.radius[twice].flatten(1)
        lower, upper, slope = center - radius, center + radius, tilts[path].slope.flatten(1).clone()
        at = (where.layer == number).nonzero().flatten()
        for side, limit in ((0, lower), (1, upper)):
            row, unit = 2 * at + side, where.unit[at]
            half = limit[row, unit] / 2  # exact, and so is its sum or difference with itself
            center[row, unit], radius[row, unit], slope[row, unit] = half, half.abs(), float(side)
        shape = (-1, *region.center.shape[1:])
        found[path] = Region(center.view(shape), radius.view(shape))
        tilts[path] = Tilt(slope.view_as(tilts[path].slope), tilts[path].multiplier)
    return found, tilts


def _placed(steps: list[Step], regions: dict[str, Region]) -> list[Step]:
    return [
        step._replace(
            before=regions.get(step.path, step.before), branches=tuple(_placed(branch, regions) for branch in step.branches)
        )
        for step in steps
    ]


def _chosen(whole: Whole, parts: Parts) -> Split | None:
    """The kink of each part whose worse side is bounded best; None where a part has none left."""
    shares: dict[str, Tensor] = {}
    whole.guessed(whole.at(parts.regions), parts.tilts, shares)
    unsure = {path: ((one.lower < 0) & (one.upper > 0)).flatten(1) for path, one in parts.regions.items()}
    score = torch.cat([torch.where(free, shares[path].flatten(1), torch.inf) for path, free in unsure.items()], 1)
    if bool(score.isinf().all(1).any()):
        return None
    tried = min(TRIED, score.shape[1])
    picked = score.topk(tried, largest=False)
    sizes = torch.tensor([free.shape[1] for free in unsure.values()], device=score.device)
    ends = sizes.cumsum(0)
    where = picked.indices.flatten()
    layer = torch.searchsorted(ends, where, right=True)
    number = torch.arange(len(score), device=score.device)
    of, unit = number.repeat_interleave(tried), where - (ends - sizes)[layer]
    regions, tilts = split(parts.regions, parts.tilts, Split(of, layer, unit))
    value = whole.better(whole.at(regions), tilts, _of(parts.tilts, of.repeat_interleave(2)))[1].view(len(score), tried, 2)
    goodness = (value.amin(2) + 0.1 * value.amax(2)).masked_fill(picked.values.isinf(), -torch.inf)
    best = goodness.argmax(1) + tried * number
    return Split(of[best], layer[best], unit[best])


def _together(one: Parts, other: Parts) -> Parts:
    regions = {
        path: Region(torch.cat([part.center, other.regions[path].center]), torch.cat([part.radius, other.regions[path].radius]))
        for path, part in one.regions.items()
    }
    tilts = {path: Tilt(*(torch.cat([part[k], other.tilts[path][k]]) for k in (0, 1))) for path, part in one.tilts.items()}
    return Parts(regions, tilts, torch.cat([one.value, other.value]), one.ways + other.ways)


def _of(tilts: Tilts, which: Tensor) -> Tilts:
    return {path: Tilt(tilt.slope[which], tilt.multiplier[which]) for path, tilt in tilts.items()}
