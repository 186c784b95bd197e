"""Rows bounded by intervals alone: lines with free slopes at each kink, and multipliers for the ends of its interval."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.relaxations.ascent import Search
from robustbench_rkhs.relaxations.full_crown import KINKS, least_proved
from robustbench_rkhs.relaxations.interval import Step, kink
from robustbench_rkhs.relaxations.linear_bounds import Lines, chain_back, least
from robustbench_rkhs.relaxations.planes import Bent
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rounding import LEAST, UNIT
from robustbench_rkhs.relaxations.rows import bending, cast
from robustbench_rkhs.runtime.allowance import Steps
from robustbench_rkhs.runtime.clock import OutOfTime, ask

LOOK = 10
"""Gradient steps between two decisions on which rows still pay."""


class Ends(NamedTuple):
    """Intervals of a kink's uncertain inputs, for each row."""

    lower: Float[Tensor, "rows units"]
    upper: Float[Tensor, "rows units"]


class Lean(NamedTuple):
    """What the line at a kink is free to choose; any choice is sound."""

    slope: Float[Tensor, "rows units"]
    """Of the lower line where both signs are possible, from the left side (0) to the right (1)."""
    pull: Float[Tensor, "rows units"]
    """Multiplier of the end next to zero where the sign is known."""


class Kink(NamedTuple):
    """A kink of the network around one image."""

    units: Int[Tensor, " units"]
    """Inputs that may have either sign."""
    active: Float[Tensor, " n"]
    """1 where an input is not negative, else 0."""
    most: Float[Tensor, " n"]
    """Largest absolute value of each input."""
    left: float
    """Slope left of zero."""


class Frame(NamedTuple):
    """A network around one image, in the box of which rows are bounded."""

    steps: list[Step]
    """Regions of a batch of one."""
    kinks: dict[str, Kink]
    """By path."""

    def single(self) -> "Frame":
        """In float32."""
        kinks = {path: one._replace(active=one.active.float(), most=one.most.float()) for path, one in self.kinks.items()}
        return Frame(cast(self.steps, torch.float32), kinks)

    def before(self, steps: list[Step]) -> "Frame":
        """The part of the network that these steps are."""
        return self._replace(steps=steps)


Parts = Mapping[str, Ends]
"""Intervals at each kink, one for each row."""
Leans = dict[str, Lean]


def framed(steps: list[Step]) -> Frame:
    """The network of a trace of one image."""
    return Frame(steps, dict(_kinks(steps)))


def _kinks(steps: list[Step]) -> list[tuple[str, Kink]]:
    found = []
    for step in steps:
        if isinstance(step.module, KINKS):
            lower, upper = step.before.lower.flatten(), step.before.upper.flatten()
            units = ((lower < 0) & (upper > 0)).nonzero().flatten()
            most = torch.maximum(lower.abs(), upper.abs())
            found.append((step.path, Kink(units, (lower >= 0).to(lower), most, kink(step.module))))
        for branch in step.branches:
            found += _kinks(branch)
    return found


def whole(frame: Frame, rows: int) -> dict[str, Ends]:
    """The intervals of the frame, once for each row."""
    regions = dict(_regions(frame.steps))
    return {
        path: Ends(*(end.flatten()[one.units].expand(rows, -1) for end in (regions[path].lower, regions[path].upper)))
        for path, one in frame.kinks.items()
        if path in regions
    }


def _regions(steps: list[Step]) -> list[tuple[str, Region]]:
    found = [(step.path, step.before) for step in steps if isinstance(step.module, KINKS)]
    return found + [one for step in steps for branch in step.branches for one in _regions(branch)]


def of_rows(ends: Parts, leans: Leans, which: Int[Tensor, " some"]) -> tuple[dict[str, Ends], Leans]:
    """Those of some rows."""
    return (
        {path: Ends(*(end[which] for end in one)) for path, one in ends.items()},
        {path: Lean(*(one[which] for one in lean)) for path, lean in leans.items()},
    )


def one_row(lines: Lines, at: int) -> Lines:
    """One of the rows of a frame."""
    return Lines(lines.slopes[:, at : at + 1], lines.offsets[:, at : at + 1])


def begun(ends: Parts) -> Leans:
    """The lines of CROWN."""
    return {
        path: Lean((one.upper > -one.lower).float() * 0.8 + 0.1, torch.zeros_like(one.lower, dtype=torch.float32))
        for path, one in ends.items()
    }


def leaning(
    c: Float[Tensor, "1 rows *shape"], known: Kink, ends: Ends, lean: Lean, proved: bool, shares: list[Tensor] | None = None
) -> Bent:
    r"""A lower bound of c' f(x), f(x) = max(x, left x) with left in [0, 1], over { l <= x <= u }.

    For any row r,

    .. math:: c^\top f(x) \ge r^\top x + \sum_i p_i, \qquad
              p_i = \min_{l_i \le z \le u_i} \; c_i f(z) - r_i z

    minimised coordinate by coordinate: f is linear on each side of zero, so the least value is at an end, or at 0 if
    l_i < 0 < u_i. Every r is sound. Where the sign of x_i is known, r_i = c_i f' - m_i or c_i f' + m_i, with a multiplier m_i >= 0
    of the end next to zero (so a split needs no multiplier besides); where it is not, r_i = c_i s_i with s_i the slope of a
    lower line for c_i >= 0, and that of the chord for c_i < 0.
    Rounding: r is what is computed. Each of the two products of p_i errs by 2 u |c_i| |z| or 2 u |r_i| |z|, u = 2^-53, sums by
    n u of all terms; LEAST covers what underflows. Inputs outside of `units` have one known sign and p_i = 0 up to
    the rounding of r_i = left c_i.
    """
    flat, left = c.flatten(2)[0], known.left
    some, (lower, upper) = flat[:, known.units], (one.to(flat) for one in ends)
    unsure, positive = (lower < 0) & (upper > 0), lower >= 0
    chord = (upper - left * lower) / torch.where(unsure, upper - lower, 1.0)
    under = left + (1 - left) * lean.slope
    steep = torch.where(unsure, torch.where(some >= 0, under, chord), torch.where(positive, 1.0, left))
    pull = torch.where(unsure, 0.0, torch.where(positive, lean.pull, -lean.pull))
    r = some * steep - pull
    low, high = (some * torch.where(end > 0, end, left * end) - r * end for end in (lower, upper))
    parts = torch.minimum(low, high)
    parts = torch.where(unsure, parts.clamp_max(0), parts)
    if shares is not None:
        shares += [parts, some, r]
    moved = flat * (known.active * (1 - left) + left)
    moved = moved.index_copy(1, known.units, r)
    slopes = moved.view_as(c)
    errors = None
    if proved:
        sizes = (flat.abs() + moved.abs()) @ known.most
        errors = (4 * UNIT * (flat.shape[1] + 64) * sizes + LEAST * (1 + known.most.sum()))[None]
    return Bent(slopes, parts[None], parts.new_zeros(1, len(flat)), errors)


def interval_bounds(
    frame: Frame, lines: Lines, ends: Parts, leans: Leans, proved: bool, shares: dict[str, list[Tensor]] | None = None
) -> tuple[Float[Tensor, " rows"], Lines]:
    """Lower bounds of linear functions of the frame's outputs, (1, rows, ...), and these bounds as lines in the image.

    `proved`: in real arithmetic. `shares`: filled with each unit's part of the constant, its slope and its new slope, by path.
    """

    def bend(step: Step) -> Callable[[Tensor, float], Bent]:
        def bound(c: Tensor, left: float) -> Bent:
            kept = None if shares is None else shares.setdefault(step.path, [])
            return leaning(c, frame.kinks[step.path], ends[step.path], leans[step.path], proved, kept)

        return bound

    rows = lines._replace(errors=torch.zeros_like(lines.offsets) if proved else None)
    moved, region = chain_back(bending(frame.steps, bend), rows), frame.steps[0].before
    if not proved:
        return least(moved, region)[0], moved
    return least_proved(moved, region)[0][0].nan_to_num(nan=-math.inf), moved


def leaned(frame: Frame, lines: Lines, ends: Parts, leans: Leans, target: Float[Tensor, " rows"], search: Search) -> Leans:
    """The best slopes and multipliers found for each row, by gradient steps (Adam); rows above `target` are left alone.

    `frame` and `lines` in float32. Stops early when the time runs out: any choice is sound.
    """
    paths = list(leans)
    best = {path: Lean(lean.slope.clone(), lean.pull.clone()) for path, lean in leans.items()}
    found = torch.full_like(target, -math.inf, dtype=torch.float32)
    going = torch.arange(len(target), device=target.device)
    ends = {path: Ends(*(end.float() for end in ends[path])) for path in paths}
    values = [leans[path].slope for path in paths] + [leans[path].pull for path in paths]
    first, second = ([torch.zeros_like(one) for one in values] for _ in range(2))
    sizes: list[Tensor] | None = None
    steps = Steps()
    try:
        for count in range(search.steps + 1):
            ask()
            leaves = [one.detach().requires_grad_() for one in values]
            shares: dict[str, list[Tensor]] | None = {} if sizes is None else None
            with steps.step(len(going)), torch.enable_grad():
                now = {path: Lean(leaves[k], leaves[k + len(paths)]) for k, path in enumerate(paths)}
                value, _ = interval_bounds(frame, lines, ends, now, False, shares)
                total = value.sum()
            if shares is not None:  # multipliers are as large as the slopes around them
                sizes = [_largest(shares[path][1]) if path in shares else values[0].new_zeros(len(going), 1) for path in paths]
            assert sizes is not None
            better = (value.detach() > found[going]).nonzero().flatten()
            found[going[better]] = value.detach()[better]
            for k, path in enumerate(paths):
                best[path].slope[going[better]] = values[k][better]
                best[path].pull[going[better]] = values[k + len(paths)][better]
            if count == search.steps or not total.requires_grad or bool((found[going] > target[going]).all()):
                break
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
            rate = search.rate * 0.1 ** (count / search.steps)
            for k, gradient in enumerate(gradients):
                if gradient is None:
                    continue
                gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                first[k].lerp_(gradient, 0.1)
                second[k].lerp_(gradient.square(), 0.01)
                move = rate * (first[k] / (1 - 0.9 ** (count + 1))) / ((second[k] / (1 - 0.99 ** (count + 1))).sqrt() + 1e-30)
                if k < len(paths):
                    values[k] = (values[k] + move).clamp(0, 1)
                else:
                    values[k] = (values[k] + move * sizes[k - len(paths)]).clamp_min(0)
            if count % LOOK == LOOK - 1:
                kept = (found[going] <= target[going]).nonzero().flatten()
                if len(kept) < len(going):
                    going, lines = going[kept], Lines(lines.slopes[:, kept], lines.offsets[:, kept])
                    ends = {path: Ends(*(end[kept] for end in one)) for path, one in ends.items()}
                    values, first, second, sizes = ([one[kept] for one in many] for many in (values, first, second, sizes))
    except OutOfTime:
        pass
    return best


def _largest(slopes: Tensor) -> Tensor:
    """The largest absolute value of each row."""
    found: Tensor = slopes.detach().abs().amax(1, keepdim=True) if slopes.shape[1] else slopes.detach().new_zeros(len(slopes), 1)
    return found
