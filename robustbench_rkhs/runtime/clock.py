"""Time budgets: clocks that inner loops check, and that raise OutOfTime once the budget is used up."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from robustbench_rkhs.runtime.heartbeat import beat

GRAIN = 1.0
"""Longest time in seconds between two checks of divisible work; 1% of the remaining time if that is more."""


UNKNOWN = 0.125
"""Assumed seconds per item before a pace was measured."""
ORDER = 512
"""Order of the matrices whose product measures the machine's speed."""


class OutOfTime(BaseException):
    """The time budget is used up.

    Like KeyboardInterrupt it is not an Exception, so that no library's `except Exception` swallows it. The caller that set the
    budget catches it; a loop with partial results catches it too and returns them.
    """


class Clock:
    """A budget of seconds from construction on; None never ends. Pickling keeps only the remaining seconds."""

    def __init__(self, budget: float | None = None) -> None:
        self.budget, self.started = budget, time.monotonic()

    def passed(self) -> float:
        """Seconds since construction."""
        return time.monotonic() - self.started

    def left(self) -> float:
        """Seconds left: not positive once the budget is used up, infinite without one."""
        return math.inf if self.budget is None else self.budget - self.passed()

    def keep_back(self, seconds: float) -> None:
        """End so many seconds earlier: they are for a last step that nothing interrupts."""
        if self.budget is not None:
            self.budget -= seconds

    def ask(self) -> None:
        """Raises OutOfTime once nothing is left."""
        if self.left() <= 0:
            raise OutOfTime

    def __reduce__(self) -> tuple[type["Clock"], tuple[float | None]]:
        return Clock, (None if self.budget is None else max(self.left(), 0.0),)


class Held(Clock):
    """A clock without end, whose time is up once an interruption is held back."""

    def __init__(self) -> None:
        super().__init__()
        self.interruption: KeyboardInterrupt | None = None

    def left(self) -> float:
        return math.inf if self.interruption is None else 0.0


_clocks: ContextVar[tuple[Clock, ...]] = ContextVar("clocks", default=())


def limits() -> tuple[Clock, ...]:
    """The clocks set by `limited`."""
    return _clocks.get()


@contextmanager
def limited(clock: Clock | None) -> Iterator[None]:
    """Context manager: code inside is limited by this clock too, besides those already set. None sets no limit.

    OutOfTime propagates to the caller. New threads start without a clock.
    """
    if clock is None:
        yield
        return
    token = _clocks.set((*_clocks.get(), clock))
    try:
        yield
    finally:
        _clocks.reset(token)


@contextmanager
def holding() -> Iterator[Held]:
    """Context manager: loops with partial results may hold an interruption back (`hold`). Raising it is left to the caller."""
    held = Held()
    with limited(held):
        yield held


def hold(interruption: KeyboardInterrupt) -> bool:
    """Hold an interruption back until partial results are returned; for loops that also return them when their time is up.

    False where nobody waits for it, or one is held already: raise it then, so that a second one ends the work at once.
    """
    held = next((clock for clock in _clocks.get() if isinstance(clock, Held)), None)
    if held is None or held.interruption is not None:
        return False
    held.interruption = interruption
    return True


def ask() -> None:
    """Raises OutOfTime if a clock set by `limited` is used up, and tells of long work (`runtime/heartbeat.py`).

    For every inner loop. Cost: 0.2 microseconds without a clock.
    """
    for clock in _clocks.get():
        clock.ask()
    beat()


def fitting(each: float) -> int:
    """Batch size at `each` seconds per image so that the clock is checked often enough; at least one.

    Unlimited without a clock or a measured pace: a batch is cut only if time could run out during it.
    """
    until = left()
    if until == math.inf or each <= 0:
        return sys.maxsize
    return max(1, int(min(max(GRAIN, until / 100), max(until, 0.0)) / each))


def portions(count: int, most: int, each: float = UNKNOWN) -> Iterator[slice]:
    """Slices of at most `most` out of `count` items, with a clock check before each; under a clock, sized by the last pace.

    `each`: assumed seconds per item before a pace was measured.
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
    """Context manager without any clock, for a short final step whose result must not be lost."""
    token = _clocks.set(())
    try:
        yield
    finally:
        _clocks.reset(token)


def afford(operations: float) -> None:
    """Raises OutOfTime if an operation that cannot be interrupted would take longer than the remaining time.

    `operations`: multiply-adds in float64, timed by a matrix product on this machine, once per process (about 50 ms). Without a
    clock nothing is timed.
    """
    until = left()
    if until <= 0 or (until < math.inf and operations > 1e7 and operations * seconds_each(torch.get_num_threads()) > until):
        raise OutOfTime


@lru_cache
def seconds_each(threads: int) -> float:
    """Seconds per float64 multiply-add on `threads` threads, measured on a matrix product of order 512."""
    matrix = torch.ones(ORDER, ORDER, dtype=torch.float64)
    matrix @ matrix  # warm-up: the first product is slower
    begun = time.monotonic()
    matrix @ matrix
    return (time.monotonic() - begun) / ORDER**3


def left() -> float:
    """Seconds until the nearest end of the clocks set by `limited`; infinite without one."""
    return min((clock.left() for clock in _clocks.get()), default=math.inf)
