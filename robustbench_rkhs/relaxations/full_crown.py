"""Full CROWN: linear bounds at every nonlinearity, with rounding errors included, so that they hold in real arithmetic."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustbench_rkhs.layers import GroupSort, MaxMin
from robustbench_rkhs.layers.standardised import Standardised
from robustbench_rkhs.lipschitz.euclidean import lengths
from robustbench_rkhs.relaxations.curves import CURVES
from robustbench_rkhs.relaxations.expansion import Exchange
from robustbench_rkhs.relaxations.interval import Step, Trace, Walk, trace
from robustbench_rkhs.relaxations.linear_bounds import AFFINE, DIAGONAL, MOVES, Lines, chain_back, margin_rows
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rounding import LEAST, UNIT, most, rounded, widened
from robustbench_rkhs.relaxations.unit_box import drop
from robustbench_rkhs.runtime.clock import OutOfTime, ask

NUMBERS = 2**22
"""Largest tensor of slopes, in numbers: 32 MiB in float64; a pass holds a few of them."""
KINKS = (nn.ReLU, nn.LeakyReLU)
BENDS: tuple[type[nn.Module], ...] = (nn.Tanh, nn.Sigmoid, nn.ELU, *CURVES, nn.MaxPool2d, MaxMin, GroupSort, Exchange, Standardised)


Tighten = Callable[[nn.Module, list[Step], Region], Region]
"""A tighter input region of a layer, from the steps before it back to the image."""


class Found(NamedTuple):
    """Proved bounds of f_y - f_j."""

    margins: Float[Tensor, "batch classes"]
    """Lower bounds over the region; zero at j = y."""
    radii: Float[Tensor, "batch classes"]
    """Share of the region's radius within which the lines are above zero, if they held everywhere; infinite at j = y."""


def proved_trace(model: nn.Module, region: Region, linear: bool) -> Trace:
    """`trace` with regions that hold in real arithmetic; `linear`: tightened at every kink by linear bounds back to the image.

    In float64. Cost: three forward passes; if `linear`, two backward passes per value that can lie on both sides of a
    kink (all values before a smooth activation, a max-pool or a sorted pair), in batches.
    """
    if region.center.dtype != torch.float64:
        raise TypeError(f"expected float64, found {region.center.dtype}")
    return trace(model, region, walk=Walk(tighten if linear else keep, rounded))


def keep(module: nn.Module, steps: list[Step], region: Region) -> Region:
    """The region, widened by the rounding of its bounds where a kink will read them."""
    if isinstance(module, (*KINKS, *BENDS)):
        return widened(Region(region.center, region.radius), 8 * UNIT * most(region))
    return region


def tighten(module: nn.Module, steps: list[Step], region: Region) -> Region:
    """The region, tightened by linear bounds of the values that matter to the module."""
    if not isinstance(module, (*KINKS, *BENDS)):
        return region
    region = keep(module, steps, region)
    lower, upper = region.lower.flatten(1), region.upper.flatten(1)
    matters = (lower < 0) & (upper > 0) if isinstance(module, KINKS) else lower < upper
    if _exact(steps) or not matters.any():
        return region
    count = int(matters.sum(1).max())
    chosen = torch.topk(matters.to(torch.uint8), count, dim=1).indices
    width = max(widest(steps), lower.shape[1])
    chunk = max(1, NUMBERS // (width * len(lower)))
    shape = region.center.shape[1:]
    for part in chosen.split(chunk, dim=1):
        ask()
        rows = lower.new_zeros(*part.shape, lower.shape[1]).scatter_(2, part[:, :, None], 1.0)
        for sign in (1, -1):
            lines = Lines((sign * rows).unflatten(2, shape), *lower.new_zeros(2, *part.shape).unbind(0))
            bound = sign * least_proved(chain_back(steps, lines), steps[0].before)[0]
            old = (lower if sign > 0 else upper).gather(1, part)
            better = torch.where(bound > old if sign > 0 else bound < old, bound, old)
            (lower if sign > 0 else upper).scatter_(1, part, better)
    center = (lower + upper) / 2
    radius = torch.maximum(upper - center, center - lower)
    cut = Region(center.unflatten(1, shape), radius.unflatten(1, shape))
    return widened(cut, 8 * UNIT * most(cut))


def _exact(steps: list[Step]) -> bool:
    """Whether intervals are as tight as linear bounds: at most one layer so far mixes values, and it is affine."""
    if steps and steps[0].before.unit:  # which intervals do not know
        return False
    straight = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, *MOVES, *DIAGONAL)
    mixing = [step for step in steps if not isinstance(step.module, straight)]
    return not mixing or (len(mixing) == 1 and isinstance(mixing[0].module, nn.Linear | nn.Conv1d | nn.Conv2d))


def widest(steps: list[Step]) -> int:
    """The largest number of inputs of a layer."""
    return max([step.before.center[0].numel() for step in every_step(steps)], default=1)


def kinked(found: Trace) -> int:
    """Number of values per image that enter nonlinear layers."""
    return sum(step.before.center[0].numel() for step in every_step(found.steps) if isinstance(step.module, (*KINKS, *BENDS)))


def every_step(steps: list[Step]) -> list[Step]:
    """The steps of a network, each before those of its branches."""
    return [inner for step in steps for inner in (step, *(deep for branch in step.branches for deep in every_step(branch)))]


def least_proved(rows: Lines, region: Region) -> tuple[Tensor, Tensor]:
    """The minimum of each linear function over the region, in real arithmetic, and the share of the region's radius within
    which it stays above zero. Rounding: n terms each, as in `rounded`."""
    assert rows.errors is not None
    slopes, center, radius = rows.slopes.flatten(2), region.center.flatten(1), region.radius.flatten(1)
    middle = torch.einsum("brn,bn->br", slopes, center) + rows.offsets
    absolute = slopes.abs()
    unit = 4 * UNIT * (center.shape[1] + 64)
    sums = torch.einsum("brn,bn->br", absolute, center.abs() + radius) + rows.offsets.abs()
    middle = middle - 2 * rows.errors - unit * sums - LEAST
    weighted = slopes * radius[:, None]
    length = (lengths(weighted) if region.round else weighted.abs().sum(2)) * (1 + unit) + LEAST
    least = length
    if region.unit:
        cut = drop(slopes, center, radius[:, 0], True)
        least = torch.where(cut < length, cut, length)
    return middle - least - 4 * UNIT * (middle.abs() + length), (middle / length).clamp_min(0) * (1 - 8 * UNIT)


def backward(found: Trace, y: Int[Tensor, " batch"], steps: list[Step] | None = None) -> tuple[Tensor, Tensor]:
    """Lower bounds of f_y - f_j, and shares of the region's radius, through `steps` instead of the steps of the trace."""
    rows = margin_rows(y, found)
    rows = rows._replace(errors=torch.zeros_like(rows.offsets))
    steps = found.steps if steps is None else steps
    first = steps[0].before if steps else found.after
    return least_proved(chain_back(steps, rows), first)


def linear_proof(found: Trace, y: Int[Tensor, " batch"], optimise: int = 0, shared: bool = False, rate: float = 0.2) -> Found:
    r"""Proved lower bounds of f_y - f_j by linear bounds; with `optimise` steps of Adam on the lower slopes of ReLUs.

    Every slope in [0, 1] is sound, so the best bound found for each row is kept, including that of intervals: never worse than
    either. Images whose margins are all above zero without steps are not optimised.
    """
    margins, shares = backward(found, y)
    margins = torch.maximum(margins, interval_proof(found, y).margins)
    open_ = (margins.scatter(1, y[:, None], torch.inf).amin(1) <= 0).nonzero().squeeze(1)
    if optimise and len(open_) and any(isinstance(step.module, KINKS) for step in every_step(found.steps)):
        slack = None if found.slack is None else found.slack[open_]
        some = Trace(_of(found.steps, open_), _part(found.after, open_), slack)
        raised, reached = _optimised(some, y[open_], optimise, shared, rate)
        margins[open_] = torch.maximum(margins[open_], raised)
        shares[open_] = torch.maximum(shares[open_], reached)
    own = y[:, None]
    return Found(margins.scatter(1, own, 0.0), shares.nan_to_num(nan=0.0, posinf=math.inf).scatter(1, own, torch.inf))


def _optimised(found: Trace, y: Tensor, steps: int, shared: bool, rate: float) -> tuple[Tensor, Tensor]:
    """The largest bounds and shares that Adam finds before the time runs out."""
    slopes = {}
    for step in every_step(found.steps):
        if isinstance(step.module, KINKS):
            start = 0.8 * (step.before.upper > -step.before.lower).to(found.after.center)[:, None] + 0.1
            rows = 1 if shared else found.after.center.shape[1]
            slopes[id(step)] = start.expand(-1, rows, *start.shape[2:]).clone().requires_grad_()
    adam = torch.optim.Adam(slopes.values(), lr=rate)
    margins = torch.full_like(found.after.center, -torch.inf)
    shares = torch.zeros_like(margins)
    sloped = _sloped(found.steps, slopes)
    for _ in range(steps):
        try:
            with torch.enable_grad():
                value, share = backward(found, y, sloped)
        except OutOfTime:  # the bounds found so far are valid
            break
        with torch.enable_grad():
            goal = value.scatter(1, y[:, None], torch.inf).amin(1).sum() if shared else value.sum()
            gradients = torch.autograd.grad(goal, list(slopes.values()), allow_unused=True)
        margins = torch.maximum(margins, value.detach().nan_to_num(nan=-torch.inf))
        shares = torch.maximum(shares, share.detach().nan_to_num(nan=0.0))
        for slope, gradient in zip(slopes.values(), gradients, strict=True):
            slope.grad = None if gradient is None else -gradient.nan_to_num()
        adam.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return margins, shares


def _part(region: Region, which: Tensor) -> Region:
    return region._replace(center=region.center[which], radius=region.radius[which])


def _of(steps: list[Step], which: Tensor) -> list[Step]:
    """The steps, for some of the images."""
    return [
        step._replace(
            before=_part(step.before, which),
            size=None if step.size is None else step.size[which],
            branches=tuple(_of(branch, which) for branch in step.branches),
        )
        for step in steps
    ]


def interval_proof(found: Trace, y: Int[Tensor, " batch"]) -> Found:
    """Proved lower bounds of f_y - f_j by intervals, the last affine layers merged with the difference."""
    count = len(found.steps)
    while count and isinstance(found.steps[count - 1].module, (*AFFINE, *DIAGONAL)):
        count -= 1
    margins, shares = backward(found, y, found.steps[count:])
    own = y[:, None]
    shares = torch.zeros_like(shares) if count else shares.nan_to_num(nan=0.0, posinf=math.inf)
    return Found(margins.scatter(1, own, 0.0), shares.scatter(1, own, torch.inf))


def _sloped(steps: list[Step], slopes: dict[int, Tensor]) -> list[Step]:
    return [
        step._replace(slope=slopes.get(id(step)), branches=tuple(_sloped(branch, slopes) for branch in step.branches))
        for step in steps
    ]
