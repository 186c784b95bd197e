"""A simulation of an evaluation on many workers, from measured job times: where adding workers stops to help, and why."""

import heapq
import random
from collections.abc import Sequence
from typing import NamedTuple


class Fleet(NamedTuple):
    """Workers of a simulated run."""

    workers: int
    overhead: float
    """Seconds that a worker loses with each job."""
    serial: float = 0.0
    """Seconds that the process which gives out the work needs for each job: it serves one worker after the other."""
    slow: float = 0.0
    """Share of the workers that are stragglers."""
    factor: float = 4.0
    """How many times longer a straggler takes."""


def wall(phases: Sequence[Sequence[float]], fleet: Fleet, seed: int = 0) -> float:
    """Seconds of the run: in each phase the next job goes to the worker that is free first; phases wait for each other.

    `phases`: seconds of the jobs of each.
    """
    chance = random.Random(seed)
    pace = [fleet.factor if chance.random() < fleet.slow else 1.0 for _ in range(fleet.workers)]
    now = 0.0
    for jobs in phases:
        free = [(now, worker) for worker in range(fleet.workers)]
        heapq.heapify(free)
        ready, ended = now, now
        for seconds in jobs:
            at, worker = heapq.heappop(free)
            ready = max(ready, at) + fleet.serial
            end = ready + fleet.overhead + seconds * pace[worker]
            ended = max(ended, end)
            heapq.heappush(free, (end, worker))
        now = ended
    return now


def efficiency(phases: Sequence[Sequence[float]], fleet: Fleet, seed: int = 0) -> float:
    """Work over what the workers were paid for: all job seconds / (workers x wall)."""
    return sum(map(sum, phases)) / (fleet.workers * wall(phases, fleet, seed))


def enlarged(phases: Sequence[Sequence[float]], times: int, seed: int = 0) -> list[list[float]]:
    """The phases of a run on `times` as many images: as many times the jobs, their seconds drawn from the measured ones."""
    chance = random.Random(seed)
    return [[chance.choice(jobs) for _ in range(times * len(jobs))] if jobs else [] for jobs in phases]


def limit(phases: Sequence[Sequence[float]], fleet: Fleet) -> str:
    """What bounds a run's time first, in words."""
    took = wall(phases, fleet)
    jobs = sum(map(len, phases))
    bounds = {
        "the process that gives out the jobs": fleet.serial * jobs,
        "the longest job of each phase": sum(max(one, default=0.0) for one in phases) * (fleet.factor if fleet.slow else 1.0),
        "the work itself": sum(map(sum, phases)) / fleet.workers,
    }
    name = max(bounds, key=lambda one: bounds[one])
    return f"{name} ({bounds[name]:.0f} of {took:.0f} s)"
