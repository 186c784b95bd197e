"""Steps of long work: counted things, how many are done, and the time to go at the measured speed."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from robustbench_rkhs.runtime.events import Progress, emit
from robustbench_rkhs.runtime.heartbeat import heartbeat, metered

SOON, SHARE = 2.0, 0.1
"""The time to go is told after so many seconds, once something is done, or this share of all inside what is under way."""


@dataclass
class Step:
    """A method at work on so many images, or whatever is counted."""

    phase: str
    method: str
    total: int
    unit: str = "images"
    done: int = 0
    computed: int = 0
    """Of these done, those that were computed now; the others were read."""
    begun: float = field(default_factory=lambda: time.monotonic())
    pace: float = 0.0
    """Seconds for each of the latest that were computed."""
    ended: float = 0.0

    def __post_init__(self) -> None:
        self.ended = self.begun

    def add(self, count: int = 1, computed: bool = True) -> None:
        """So many are done now, computed or read."""
        now = time.monotonic()
        self.done += count
        if computed and count:
            self.computed += count
            self.pace = (now - self.ended) / count
        self.ended = now

    def left(self, under_way: float = 0.0) -> float | None:
        """Seconds to go at the speed so far; None while it is not known.

        `under_way`: how many the work done inside running ones is worth. What is settled most cheaply often comes first, so the
        latest speed counts where it is slower.
        """
        passed, did = time.monotonic() - self.begun, self.computed + under_way
        rest = self.total - self.done - under_way
        if passed < SOON or rest <= 0 or not (self.computed or under_way > SHARE * self.total):
            return None
        return rest * max(passed / did, self.pace)

    def tell(self, under_way: float = 0.0, detail: str = "", most: float = math.inf) -> None:
        """Emit how far it is; nothing where there is nothing to do. `most`: seconds after which it is stopped."""
        if not self.total:
            return
        known = {"phase": self.phase, "method": self.method, "done": self.done, "total": self.total, "unit": self.unit}
        known["under_way"] = under_way
        passed, left = time.monotonic() - self.begun, self.left(under_way)
        emit(Progress(**known, seconds=passed, left=None if left is None else max(min(left, most), 0.0), detail=detail))


@contextmanager
def stepped(phase: str, method: str, total: int, unit: str = "images") -> Iterator[Step]:
    """Context manager of a step: it tells of itself at its start and about once a second.

    Call `add` and `tell` as things are done.
    """
    step = Step(phase, method, total, unit)
    with metered() as meter, heartbeat(lambda: step.tell(detail=meter.detail)):
        step.tell()
        yield step
