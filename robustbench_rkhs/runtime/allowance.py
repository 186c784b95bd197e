"""An allowance of counted work: a limit that ends a search at the same step on every machine."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from robustbench_rkhs.runtime.clock import Clock, limits
from robustbench_rkhs.runtime.multiply_adds import MultiplyAdds


class Allowance(Clock):
    """So many multiply-adds, for use with `limited`: those that `Steps` counted are taken from it, and OutOfTime ends it."""

    def __init__(self, multiply_adds: float) -> None:
        super().__init__(None)
        self.remaining = multiply_adds

    def left(self) -> float:
        """Seconds left: none of them are limited, until the work is used up."""
        return math.inf if self.remaining > 0 else 0.0

    def __reduce__(self) -> tuple[type["Allowance"], tuple[float]]:
        return Allowance, (self.remaining,)


GRADIENT = 3
"""Cost of a value with its gradient, in values."""


class Steps:
    """Gradient steps of a search: the cost of a value is counted on the first one, per row, and is the same on the others.

    Without an allowance nothing is counted.
    """

    def __init__(self) -> None:
        self.each: float | None = None

    @contextmanager
    def step(self, rows: int) -> Iterator[None]:
        """Around the values of so many rows in one step. Raises OutOfTime after it once the allowance is used up."""
        allowances = [one for one in limits() if isinstance(one, Allowance)]
        if not allowances:
            yield
            return
        if self.each is None:
            with MultiplyAdds() as counted:
                yield
            self.each = counted.count / max(rows, 1)
        else:
            yield
        for one in allowances:
            one.remaining -= GRADIENT * self.each * rows
            one.ask()
