"""Search for the slopes and multipliers that bound rows best, by gradient steps."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.relaxations.lagrangian import Tilt
from robustbench_rkhs.relaxations.rows import Rows, Tilts, valued
from robustbench_rkhs.runtime.allowance import Steps
from robustbench_rkhs.runtime.clock import OutOfTime, ask

FURTHEST = (-4.0, 5.0)
"""Slopes are kept within these, relative to the two sides of a kink at 0 and 1; beyond, the search only oscillates."""
SPAN = 25.0
"""Multipliers stay within a factor exp(SPAN) of where they began, so that the rounding bound stays negligible."""
LOOK = 20
"""Steps between two decisions on which rows still pay."""


class Search(NamedTuple):
    """How slopes and multipliers are searched for."""

    steps: int = 200
    """Gradient steps (Adam)."""
    rate: float = 0.3
    """Step size at the start; it falls to 2% of this."""


def optimised(rows: Rows, tilts: Tilts, target: Float[Tensor, " batch"], search: Search) -> Tilts:
    """The best slopes and multipliers found for each row, in float32; rows above `target` are left alone.

    Every 20 steps rows that are above the target are put aside, and images one of whose rows would not get above zero if the
    gain of the last 20 steps went on. Stops early when the time runs out: any slopes and multipliers are sound.
    """
    paths = list(tilts)
    data = rows.to(torch.float32)
    best = {path: Tilt(tilt.slope.float().clone(), tilt.multiplier.float().clone()) for path, tilt in tilts.items()}
    found = torch.full((len(target),), -math.inf, dtype=torch.float32, device=target.device)  # as the search, whatever the default
    active = torch.arange(len(target), device=target.device)
    goal = target.float()
    state = Adam([best[path].slope for path in paths], [best[path].multiplier for path in paths])
    before = found.clone()
    steps = Steps()
    try:
        for count in range(search.steps + 1):
            ask()
            leaves = state.leaves()
            with steps.step(len(active)), torch.enable_grad():
                now = {path: Tilt(leaves[k], leaves[k + len(paths)].exp()) for k, path in enumerate(paths)}
                value = valued(data, now, False)[0]
                total = value.sum()
            better = (value.detach() > found[active]).nonzero().flatten()
            found[active[better]] = value.detach()[better]
            for k, path in enumerate(paths):
                best[path].slope[active[better]] = leaves[k].detach()[better]
                best[path].multiplier[active[better]] = leaves[k + len(paths)].detach()[better].exp()
            if count == search.steps or bool((found[active] > goal[active]).all()):
                break
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
            state.move(gradients, search.rate * 0.02 ** (count / search.steps), count + 1)
            if count % LOOK == LOOK - 1:
                left = (search.steps - count) / LOOK
                hopeless = found[active] + (found - before)[active] * left < 0
                given_up = data.image[hopeless] if count >= 2 * LOOK - 1 else data.image[:0]
                going = (found[active] <= goal[active]) & ~torch.isin(data.image, given_up)
                before = found.clone()
                if not going.any():
                    break
                if not going.all():
                    kept = going.nonzero().flatten()
                    active, data = active[kept], data.of(kept)
                    state.keep(kept)
    except OutOfTime:
        pass
    return best


class Adam:
    """Adam on slopes and the logarithms of multipliers."""

    def __init__(self, slopes: list[Tensor], multipliers: list[Tensor]) -> None:
        self.count = len(slopes)
        self.values = [one.clone() for one in slopes] + [one.log() for one in multipliers]
        self.begun = [one.clone() for one in self.values]
        self.first = [torch.zeros_like(one) for one in self.values]
        self.second = [torch.zeros_like(one) for one in self.values]

    def leaves(self) -> list[Tensor]:
        return [one.detach().requires_grad_() for one in self.values]

    def move(self, gradients: tuple[Tensor | None, ...], rate: float, count: int) -> None:
        """One step upwards."""
        for k, gradient in enumerate(gradients):
            if gradient is None:
                continue
            gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            self.first[k].lerp_(gradient, 0.1)
            self.second[k].lerp_(gradient.square(), 0.01)
            size = (self.second[k] / (1 - 0.99**count)).sqrt() + 1e-30
            self.values[k] = self.values[k] + rate * self.first[k] / (1 - 0.9**count) / size
            if k < self.count:
                self.values[k].clamp_(*FURTHEST)
            else:
                self.values[k] = torch.clamp(self.values[k], self.begun[k] - SPAN, self.begun[k] + SPAN)

    def keep(self, which: Int[Tensor, " some"]) -> None:
        """Some of the rows."""
        for parts in (self.values, self.begun, self.first, self.second):
            parts[:] = [one[which] for one in parts]
