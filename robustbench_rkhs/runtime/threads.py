"""How many threads PyTorch computes on: one or all, whichever a few timed steps show to be faster."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

GAIN = 1.2
"""All threads are taken where they are faster than one by this factor: so chance seldom decides."""
ROUNDS, SECONDS = 5, 1.5
"""Most rounds, of a step on one and one on all threads, and the time after which no further round begins."""
AFFORDABLE = 2e9
"""Multiply-adds of a step that is worth timing, about: half a second on one thread."""


@dataclass(frozen=True)
class Threads:
    """The number of threads of a run on a CPU, and how it was chosen. It is kept with the run, which goes on with the same."""

    count: int
    available: int
    one: float | None = None
    """Seconds of a step on one thread, where that was measured."""
    every: float | None = None
    """Seconds of the same step on all threads."""
    why: str = ""
    """The reason where nothing was measured."""

    def __str__(self) -> str:
        taken = f"{self.count} of {self.available} thread{'s' if self.available != 1 else ''}"
        if self.one is None or self.every is None:
            return f"{taken}, {self.why}"
        return f"{taken}, as measured: {1e3 * self.one:.3g} ms a step on one, {1e3 * self.every:.3g} ms on all"

    def plain(self) -> dict[str, Any]:
        """As JSON or a checkpoint keeps it."""
        return asdict(self)


def given(count: int) -> Threads:
    """The number that the user asked for."""
    return Threads(count, max(count, torch.get_num_threads()), why="as asked for")


def measured(step: Callable[[], object]) -> Threads:
    """One thread or all of PyTorch's (OMP_NUM_THREADS bounds them): the faster, by the median time of a few steps on each.

    The steps alternate, so that another busy process slows both sides, and the first on each side does not count unless it is
    slow. A step that raises is left to the run itself, which then computes on all. Cost: two to ten steps.
    """
    available = torch.get_num_threads()
    if available == 1:
        return Threads(1, 1, why="all there are")
    times: dict[int, list[float]] = {1: [], available: []}
    begun = time.monotonic()
    with threads(available), torch.random.fork_rng(devices=[]):
        for _ in range(ROUNDS):
            for count, taken in times.items():
                torch.set_num_threads(count)
                started = time.perf_counter()
                try:
                    step()
                except Exception:  # whatever a user's model raises
                    return Threads(available, available, why="a first step failed")
                taken.append(time.perf_counter() - started)
            if time.monotonic() - begun > SECONDS:
                break
    one, every = (_median(taken[1:] or taken) for taken in times.values())
    return Threads(available if every * GAIN < one else 1, available, one, every)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of PyTorch; then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
