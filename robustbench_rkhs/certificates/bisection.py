"""Bisection for the largest radius that bounds over a ball prove; the requested radii are tried first."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from robustbench_rkhs.certificates.base import FURTHEST
from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.runtime.clock import OutOfTime, ask, hold

LARGEST = FURTHEST
"""The largest radius that is searched for."""
TRIES = 60
"""Most balls tried for one image."""
Tell = Callable[[int, str], None]
"""Hears how many images are settled, and what is tried on the others."""


class Largest(NamedTuple):
    """The result of a search for the largest radius."""

    radius: Float64[Tensor, " batch"]
    """The largest radius proved; 0 where none."""
    cut: Bool[Tensor, " batch"]
    """Images whose search was cut short by the clock: a larger radius might have been proved."""


def largest(
    proves: Callable[[Tensor, Tensor], Tensor],
    zero: Float64[Tensor, " batch"],
    epsilons: Sequence[float],
    search: bool,
    tolerance: float,
    step: float | None = None,
    tell: Tell = lambda settled, doing: None,
) -> Largest:
    """The largest radius per image that `proves` (positions, radii of balls) -> radii has proved.

    `zero`: one zero per image. `search`: go beyond the requested epsilons, up to a relative gap of `tolerance`; with a `step` only
    up to the largest of them, and to a gap of the step. The clock is checked after each round of balls; `proves` may be cut short
    by it, too, and returns NaN for balls that it did not reach. So does an interruption that is held
    back. `tell` is called before each round of balls.
    """
    asked = sorted({float(eps) for eps in epsilons if 0 < eps < float("inf")})
    found = _Search(proves, zero, asked, search, tolerance, step, tell)
    try:
        found.run()
    except OutOfTime:
        return Largest(found.best, found.unsettled())
    except KeyboardInterrupt as interruption:  # what is proved stays
        if not hold(interruption):
            raise
        return Largest(found.best, found.unsettled())
    return Largest(found.best, torch.zeros_like(zero, dtype=torch.bool))


class _Search:
    """The state of each image: its largest proved radius, and the smallest radius that failed."""

    def __init__(
        self,
        proves: Callable[[Tensor, Tensor], Tensor],
        zero: Tensor,
        epsilons: list[float],
        search: bool,
        tolerance: float,
        step: float | None = None,
        tell: Tell = lambda settled, doing: None,
    ) -> None:
        self.tell = tell
        self.proves, self.epsilons, self.search, self.tolerance = proves, epsilons, search, tolerance
        self.best, self.failed = zero.clone(), torch.full_like(zero, torch.inf)
        self.step, self.end = (0.0, LARGEST) if step is None else (step, max(epsilons, default=0.0))
        self.open = torch.ones_like(zero, dtype=torch.bool)
        """Images with a proved radius, or without any try yet."""

    def run(self) -> None:
        everyone = torch.arange(len(self.best), device=self.best.device)
        ask()
        right = self.proves(everyone, self.best + 1e-9)
        self.open = ~(right <= 0)
        known = (right > 0).nonzero().flatten()
        self.best[known] = right[known] if self.search else 0.0
        ask()
        for eps in self.epsilons:  # where a ball was not proved, no larger one is tried
            going = self.going(self.failed.isinf() & (self.best < eps))
            self.tell(int((~self.unsettled()).sum()), f"at {radius_text(eps)}")
            self.try_balls(going, self.best.new_full((len(going),), eps))
        for _ in range(TRIES if self.search else 0):
            self.failed = self.failed.masked_fill(self.failed <= self.best, torch.inf)
            going = self.going(self.searching())
            if not len(going):
                break
            self.tell(len(self.best) - len(going), "the largest radius")
            low, high = self.best[going], self.failed[going]
            # far apart: the geometric mean; close: the midpoint
            apart = (high > 4 * low) & (self.step == 0)
            between = torch.where(apart, (low * high).sqrt(), (low + high) / 2)
            self.try_balls(going, torch.where(high.isinf(), (4 * low).clamp(1e-3, max(LARGEST, self.end)), between))

    def going(self, wanted: Tensor) -> Tensor:
        return (self.open & wanted).nonzero().flatten()

    def searching(self) -> Tensor:
        """Images whose gap between proved and failed radius is still above the tolerance."""
        gap = (self.best * self.tolerance).clamp_min(self.step)
        return (self.best < self.end) & (self.failed > self.best + gap)

    def unsettled(self) -> Tensor:
        """Images for which more balls remained to be tried."""
        asked = self.failed.isinf() & (self.best < max(self.epsilons, default=0.0))
        return self.open & (asked | (self.searching() if self.search else torch.zeros_like(asked)))

    def try_balls(self, going: Tensor, radii: Tensor) -> None:
        if not len(going):
            return
        reached = self.proves(going, radii)
        proved = torch.maximum(self.best[going], reached.nan_to_num(nan=0.0, posinf=torch.inf))
        self.best[going] = proved
        ask()  # checked before a failure counts: the clock may have cut the bounds short
        self.failed[going] = torch.where(reached < radii, torch.minimum(self.failed[going], radii), self.failed[going])
