"""Branch and bound with intervals: a row that falls short is bounded on both sides of a kink, until every part is proved."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from robustbench_rkhs.relaxations.ascent import Search
from robustbench_rkhs.relaxations.full_crown import KINKS
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.interval_rows import Ends, Frame, Lean, Leans, Parts, interval_bounds, leaned, of_rows
from robustbench_rkhs.relaxations.linear_bounds import Lines
from robustbench_rkhs.runtime.clock import ask

BATCH = 32
"""Parts that are split at once."""
TRIED = 6
"""Kinks that are tried for each part."""
ASCENT = Search(20, 0.1)
"""The search on each new part, from the slopes and multipliers of the whole."""


class Pieces(NamedTuple):
    """Parts of the box of one row, by the intervals at its kinks."""

    ends: dict[str, Ends]
    leans: Leans
    value: Float64[Tensor, " parts"]
    """Proved bounds."""

    def of(self, which: Int[Tensor, " some"]) -> "Pieces":
        return Pieces(*of_rows(self.ends, self.leans, which), self.value[which])

    def and_(self, other: "Pieces") -> "Pieces":
        def joined(one: Sequence[Tensor], more: Sequence[Tensor]) -> Iterator[Tensor]:
            return map(torch.cat, zip(one, more, strict=True))

        ends = {path: Ends(*joined(one, other.ends[path])) for path, one in self.ends.items()}
        leans = {path: Lean(*joined(one, other.leans[path])) for path, one in self.leans.items()}
        return Pieces(ends, leans, torch.cat([self.value, other.value]))


class Settled(NamedTuple):
    """How a row ended."""

    proved: bool
    """Every part was proved above zero."""
    parts: int
    """Parts that were bounded."""


def parted(frame: Frame, line: Lines, ends: Parts, leans: Leans, target: float, most: int) -> Settled:
    r"""Whether one row, `line` of (1, 1, ...), is above zero over the box of its frame, proved on at most `most` parts.

    A part is the region where some inputs of kinks are at most, others at least zero: the intervals of these inputs are cut at
    zero, and the bound of `interval_rows` holds on it for any slopes and multipliers. Both sides of a split cover the part, so a
    row above zero on every part is above zero.

    The kinks whose lines miss the most at the image where the bound is least are tried with the slopes at hand; the pair with the
    best worse side is kept. The parts with the best bounds come first, which keeps their list short. Compare beta-CROWN (arXiv
    2103.06624) for the multipliers of splits, and FSB (arXiv 2104.06718) for trying kinks.
    """
    single, count = frame.single(), 0
    quick = Lines(line.slopes.float(), line.offsets.float())
    left = Pieces(dict(ends), leans, line.offsets.new_full((1,), -torch.inf))
    while len(left.value):
        ask()
        if count >= most:
            return Settled(False, count)
        order = left.value.argsort(descending=True)
        now, left = left.of(order[:BATCH]), left.of(order[BATCH:])
        sides = chosen(single, quick, now)
        if sides is None:
            return Settled(False, count)
        size = len(sides.value)
        better = leaned(single, _many(quick, size), sides.ends, sides.leans, torch.full((size,), target), ASCENT)
        value = interval_bounds(frame, _many(line, size), sides.ends, better, True)[0]
        count += size
        left = left.and_(Pieces(sides.ends, better, value).of((value <= 0).nonzero().flatten()))
    return Settled(True, count)


def _many(line: Lines, count: int) -> Lines:
    return Lines(line.slopes.expand(1, count, *line.slopes.shape[2:]), line.offsets.expand(1, count))


def chosen(single: Frame, quick: Lines, parts: Pieces) -> Pieces | None:
    """Both sides of a kink of each part, which is the one whose worse side is bounded best; None where a part has none left."""
    count, paths = len(parts.value), list(single.kinks)
    shares: dict[str, list[Tensor]] = {}
    _, moved = interval_bounds(single, _many(quick, count), _single(parts.ends), parts.leans, False, shares)
    region = single.steps[0].before
    at = (region.center - moved.slopes[0].sign() * region.radius).detach()
    inputs = inputs_at(single.steps, at)
    scores = []
    for path in paths:
        known, (lower, upper) = single.kinks[path], parts.ends[path]
        part, c, r = shares[path] if path in shares else (torch.zeros_like(lower).float(),) * 3
        x = inputs[path].flatten(1)[:, known.units]
        missed = c * torch.where(x > 0, x, known.left * x) - r * x - part
        scores.append(torch.where((lower < 0) & (upper > 0), missed, -torch.inf))
    score = torch.cat(scores, 1)
    if bool(score.isinf().all(1).any()):
        return None
    tried = min(TRIED, score.shape[1])
    picked = score.topk(tried)
    number = torch.arange(count, device=score.device)
    twice = number.repeat_interleave(tried)
    sides = split(parts.of(twice), picked.indices.flatten(), paths)
    value, _ = interval_bounds(single, _many(quick, len(sides.value)), _single(sides.ends), sides.leans, False)
    value = value.view(count, tried, 2)
    goodness = (value.amin(2) + 0.1 * value.amax(2)).masked_fill(picked.values.isinf(), -torch.inf)
    best = goodness.argmax(1) + tried * number
    return sides.of(torch.stack([2 * best, 2 * best + 1], 1).flatten())


def split(parts: Pieces, where: Int[Tensor, " parts"], paths: list[str]) -> Pieces:
    """Both sides of one kink of each part, at most zero and at least zero in turn. `where`: counted over all `paths`."""
    number = torch.arange(len(where), device=where.device)
    twice, ends, start = parts.of(number.repeat_interleave(2)), {}, 0
    for path in paths:
        lower, upper = (end.clone() for end in twice.ends[path])
        at = ((where >= start) & (where < start + lower.shape[1])).nonzero().flatten()
        unit = where[at] - start
        upper[2 * number[at], unit] = 0.0
        lower[2 * number[at] + 1, unit] = 0.0
        start += lower.shape[1]
        ends[path] = Ends(lower, upper)
    return twice._replace(ends=ends)


def _single(ends: Parts) -> dict[str, Ends]:
    return {path: Ends(*(end.float() for end in one)) for path, one in ends.items()}


def inputs_at(steps: list[Step], x: Tensor) -> dict[str, Tensor]:
    """What enters each kink at these images, by path."""
    found: dict[str, Tensor] = {}
    _run(steps, x, found)
    return found


def _run(steps: list[Step], x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The outputs at x, and what enters each kink."""
    for step in steps:
        if isinstance(step.module, KINKS):
            inputs[step.path] = x
            x = torch.where(x > 0, x, getattr(step.module, "negative_slope", 0.0) * x)
        elif step.branches:
            found = [_run(branch, x.clone(), inputs) for branch in step.branches]
            x = torch.cat(found, 1) if step.widths else torch.stack(found).sum(0)
        else:
            x = step.module(x)
    return x
