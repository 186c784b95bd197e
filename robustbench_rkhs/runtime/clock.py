"""A clock that inner loops ask: it raises OutOfTime once the time somebody gave is used up."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

GRAIN = 1.0
"""Seconds that pass between two questions at most, where the work can be cut; a hundredth of what is left where that is more."""


UNKNOWN = 0.125
"""Seconds that something is taken for at first, where its pace is not known."""
ORDER = 512
"""Of the matrices whose product shows the machine's pace."""


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


def fitting(each: float) -> int:
    """How many images, of `each` seconds at the pace so far, to take at once so that the clock is asked often enough.

    At least one. Without a clock, or a pace, any number: a batch is cut only where time could run out over it.
    """
    until = left()
    if until == math.inf or each <= 0:
        return sys.maxsize
    return max(1, int(min(max(GRAIN, until / 100), max(until, 0.0)) / each))


def portions(count: int, most: int, each: float = UNKNOWN) -> Iterator[slice]:
    """So many things in slices of `most` at most, the clock asked before each; smaller where one runs, by the pace of the last.

    `each`: seconds that one is taken for before there is a pace.
    """
    start = 0
    while start < count:
        ask()
        size, begun = min(most, count - start, fitting(each)), time.monotonic()
        yield slice(start, start + size)
        each = (time.monotonic() - begun) / size
        start += size


@contextmanager
def unlimited() -> Iterator[None]:
    """What runs inside asks no clock: for the short end of something that must not be lost."""
    token = _clocks.set(())
    try:
        yield
    finally:
        _clocks.reset(token)


def afford(operations: float) -> None:
    """Before one operation that can't ask: raises OutOfTime where it would take longer than is left.

    `operations`: multiply-adds in float64, at the pace that a product of matrices has on this machine, tried once a process (in
    about 50 ms). Nothing is tried where no clock runs.
    """
    until = left()
    if until <= 0 or (until < math.inf and operations > 1e7 and operations * seconds_each(torch.get_num_threads()) > until):
        raise OutOfTime


@lru_cache
def seconds_each(threads: int) -> float:
    """Seconds of a multiply-add in float64 on so many threads, in a product of matrices of order 512."""
    matrix = torch.ones(ORDER, ORDER, dtype=torch.float64)
    matrix @ matrix  # the first one is slower
    begun = time.monotonic()
    matrix @ matrix
    return (time.monotonic() - begun) / ORDER**3


def left() -> float:
    """Seconds until the nearest end of the clocks set by `limited`; infinite without one."""
    return min((clock.left() for clock in _clocks.get()), default=math.inf)
