"""Progress as plain lines, for pipes, logs and notebooks: nothing of short work, then a line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from robustbench_rkhs.runtime.durations import clock_time
from robustbench_rkhs.runtime.events import (
    BoundsChanged,
    EpochFinished,
    Event,
    Finished,
    Message,
    OnEvent,
    PhaseStarted,
    Progress,
    TrainingStep,
    heard,
    listening,
)
from robustbench_rkhs.runtime.sinks import for_line

PATIENCE = 2.0
"""Seconds of work before the first line."""
CALM = 1.0
"""Seconds that a phase lasts before it is shown in place of the one before."""
PACES = ((60.0, 5.0), (600.0, 10.0), (float("inf"), 30.0))
"""Seconds between two lines: 5 in the first minute, 10 in the first ten, then 30."""


class View:
    """What the latest events say of the work under way."""

    def __init__(self, now: float) -> None:
        self.begun = now
        self.work: Event | None = None
        """The latest that says what is done: a phase, its progress, or a step of a training."""
        self.bounds: BoundsChanged | None = None
        self.next: tuple[float, Event] | None = None
        """When another phase began, and which: a short one, such as a validation, is not worth a change of what is shown."""

    def note(self, event: Event, now: float) -> None:
        """Take an event into account."""
        if isinstance(event, PhaseStarted) and self.work is not None:
            self.next = now, event
        elif isinstance(event, PhaseStarted | Progress | TrainingStep):
            self.work, self.next = event, None
        elif isinstance(event, BoundsChanged):
            self.bounds = event
        elif isinstance(event, Finished):
            self.work, self.bounds, self.next = None, None, None

    def settle(self, now: float) -> None:
        """A phase that has lasted a second is the work under way."""
        if self.next is not None and now - self.next[0] >= CALM:
            self.work, self.next = self.next[1], None

    def line(self, now: float) -> str:
        """The work under way in a line; empty where nothing is known of it."""
        if self.work is None:
            return ""
        bounds = f"; {self.bounds}" if self.bounds else ""
        return for_line(f"[{clock_time(now - self.begun)}] {self.work}{bounds}")


class Lines:
    """A listener that writes lines: the work under way once it has taken two seconds, and then every few seconds.

    Messages and the metrics of epochs are written too, from then on; those that came before come first, and are left out where the
    work ends sooner. `messages`: False if somebody else writes these.
    """

    def __init__(self, write: Callable[[str], object], messages: bool = True, now: Callable[[], float] = time.monotonic) -> None:
        self.write, self.messages, self.now = write, messages, now
        self.view = View(now())
        self.due = self.view.begun + PATIENCE
        self.waiting: list[str] | None = []
        """Messages that were not written yet; None once lines are written."""

    def __call__(self, event: Event) -> None:
        self.view.note(event, self.now())
        if self.messages and isinstance(event, Message | EpochFinished):
            if self.waiting is None:
                self.write(for_line(event))
            else:
                self.waiting.append(for_line(event))
        self.tick()

    def tick(self) -> None:
        """Write the work under way, if it is time."""
        now = self.now()
        self.view.settle(now)
        if now < self.due:
            return
        for line in self.waiting or ():
            self.write(line)
        self.waiting = None
        if line := self.view.line(now):
            self.write(line)
            self.due = now + pace(now - self.view.begun)


def pace(passed: float) -> float:
    """Seconds until the next line, after so many of work."""
    return next(every for until, every in PACES if passed < until)


@contextmanager
def followed(on_event: OnEvent | None) -> Iterator[None]:
    """Context manager of the public verbs: events go to `on_event`; without one, lines to stderr, unless somebody listens."""
    if on_event is None and not heard():
        on_event = Lines(_on_stderr)
    with listening(on_event):
        yield


def _on_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
