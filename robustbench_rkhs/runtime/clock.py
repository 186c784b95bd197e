"""A clock that inner loops ask: it raises OutOfTime once the time somebody gave is used up."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class OutOfTime(BaseException):
    """The time given is used up.

    Like KeyboardInterrupt it is not an Exception, so that no library's `except Exception` takes it for a failure of its own.
    Whoever gave the time catches it; a loop that holds something worth keeping catches it too and returns what it has.
    """


class Clock:
    """`budget` seconds from when it was made; None never ends. Pickled, it takes along what is left of them."""

    def __init__(self, budget: float | None = None) -> None:
        self.budget, self.started = budget, time.monotonic()

    def passed(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.started

    def left(self) -> float:
        """Seconds left: not positive once the budget is used up, infinite without one."""
        return math.inf if self.budget is None else self.budget - self.passed()

    def ask(self) -> None:
        """Raises OutOfTime once nothing is left."""
        if self.left() <= 0:
            raise OutOfTime

    def __reduce__(self) -> tuple[type["Clock"], tuple[float | None]]:
        return Clock, (None if self.budget is None else max(self.left(), 0.0),)


_clocks: ContextVar[tuple[Clock, ...]] = ContextVar("clocks", default=())


@contextmanager
def limited(clock: Clock | None) -> Iterator[None]:
    """What runs inside asks this clock too, beside those already set: the nearest end counts. None sets nothing.

    OutOfTime passes through: the caller catches it. Another thread starts without a clock.
    """
    if clock is None:
        yield
        return
    token = _clocks.set((*_clocks.get(), clock))
    try:
        yield
    finally:
        _clocks.reset(token)


def ask() -> None:
    """Raises OutOfTime where a clock set by `limited` is used up. For every inner loop. Cost: 0.1 microseconds without a clock."""
    for clock in _clocks.get():
        clock.ask()


def left() -> float:
    """Seconds until the nearest end of the clocks set by `limited`; infinite without one."""
    return min((clock.left() for clock in _clocks.get()), default=math.inf)
