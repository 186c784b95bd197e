"""The speed of a training, measured on its latest steps and validations."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

MEMORY = 20.0
"""Seconds after which a step counts half."""
SURE = 1.0
"""Seconds of steps after which the time to go is told."""


class Pace:
    """Seconds per step and per validation. The first step, which is slower than the others, counts until there is a second."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0.0, 0.0
        self.validations, self.validating = 0, 0.0
        self.marks, self.last = 0, time.monotonic()

    def begin(self) -> None:
        """Steps begin now; what was done since the last of them does not count."""
        self.last = time.monotonic()

    def mark(self, steps: int) -> None:
        """So many steps ended now."""
        now = time.monotonic()
        took, self.last = now - self.last, now
        kept = 0.0 if self.marks == 1 else 0.5 ** (took / MEMORY)
        self.steps, self.seconds, self.marks = kept * self.steps + steps, kept * self.seconds + took, self.marks + 1

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Context manager of a validation."""
        begun = time.monotonic()
        yield
        self.validations, self.validating = self.validations + 1, self.validating + time.monotonic() - begun

    def per_second(self) -> float | None:
        """Steps per second."""
        return self.steps / self.seconds if self.seconds > 0 else None

    def left(self, steps: int, validations: int) -> float | None:
        """Seconds to go for so many steps and validations; None while the speed is not known."""
        if self.seconds < SURE:
            return None
        each = self.validating / self.validations if self.validations else 0.0
        return steps * self.seconds / self.steps + validations * each
