"""The largest radius that bounds over a ball prove: those asked for in turn, then halving."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from robustbench_rkhs.runtime.clock import OutOfTime, ask

LARGEST = 1e4
"""No larger radius is looked for, in pixels of [0, 1]."""
TRIES = 60
"""Balls tried for one image at most."""


class Largest(NamedTuple):
    """What a search for the largest radius came to."""

    radius: Float64[Tensor, " batch"]
    """The largest that was proved; 0 where none."""
    cut: Bool[Tensor, " batch"]
    """Images that a clock left in the middle of their search: more might have been proved of them."""


def largest(
    proves: Callable[[Tensor, Tensor], Tensor],
    zero: Float64[Tensor, " batch"],
    epsilons: Sequence[float],
    search: bool,
    tolerance: float,
) -> Largest:
    """For each image the largest radius that `proves` (positions, radii of balls) -> radii has proved.

    `zero`: a zero an image. `search`: beyond the epsilons asked for, up to a relative gap of `tolerance`. The clock is asked after
    each round of balls; `proves` may itself be cut by it: NaN for a ball that it did not come to.
    """
    found = _Search(proves, zero, sorted({float(eps) for eps in epsilons if 0 < eps < float("inf")}), search, tolerance)
    try:
        found.run()
    except OutOfTime:
        return Largest(found.best, found.unsettled())
    return Largest(found.best, torch.zeros_like(zero, dtype=torch.bool))


class _Search:
    """What is known of each image: its largest proved radius, and the smallest that was tried in vain."""

    def __init__(
        self, proves: Callable[[Tensor, Tensor], Tensor], zero: Tensor, epsilons: list[float], search: bool, tolerance: float
    ) -> None:
        self.proves, self.epsilons, self.search, self.tolerance = proves, epsilons, search, tolerance
        self.best, self.failed = zero.clone(), torch.full_like(zero, torch.inf)
        self.open = torch.ones_like(zero, dtype=torch.bool)
        """Images of which something was proved, or nothing tried yet."""

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
            self.try_balls(going, self.best.new_full((len(going),), eps))
        for _ in range(TRIES if self.search else 0):
            self.failed = self.failed.masked_fill(self.failed <= self.best, torch.inf)
            going = self.going(self.searching())
            if not len(going):
                break
            low, high = self.best[going], self.failed[going]
            # far apart: by factors; near: halfway
            between = torch.where(high > 4 * low, (low * high).sqrt(), (low + high) / 2)
            self.try_balls(going, torch.where(high.isinf(), (4 * low).clamp_min(1e-3), between))

    def going(self, wanted: Tensor) -> Tensor:
        return (self.open & wanted).nonzero().flatten()

    def searching(self) -> Tensor:
        """Images between whose radii, proved and failed, there is still room."""
        return (self.best < LARGEST) & (self.failed > self.best * (1 + self.tolerance))

    def unsettled(self) -> Tensor:
        """Images for which balls were still to be tried."""
        asked = self.failed.isinf() & (self.best < max(self.epsilons, default=0.0))
        return self.open & (asked | (self.searching() if self.search else torch.zeros_like(asked)))

    def try_balls(self, going: Tensor, radii: Tensor) -> None:
        if not len(going):
            return
        reached = self.proves(going, radii)
        proved = torch.maximum(self.best[going], reached.nan_to_num(nan=0.0, posinf=torch.inf))
        self.best[going] = proved
        ask()  # before a failure is believed: the bounds may have been cut short
        self.failed[going] = torch.where(reached < radii, torch.minimum(self.failed[going], radii), self.failed[going])
