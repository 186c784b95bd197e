"""Heartbeats: about once a second, from the loops that ask their clock, what the work inside a long job is doing is told."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

EVERY = 1.0
"""Seconds between two heartbeats."""
T = TypeVar("T")


class _Pulse:
    """Calls `tell` at most every EVERY seconds."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell, self.due = tell, time.monotonic() + EVERY

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self.due:
            self.due = now + EVERY
            self.tell()


@dataclass
class Meter:
    """How far a job has come, as its loops say: a share of its work from 0 to 1, and what it is doing."""

    share: float = 0.0
    detail: str = ""
    width: float = 1.0
    """The share of the whole that the item under way is."""


_pulse: ContextVar[_Pulse | None] = ContextVar("pulse", default=None)
_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def heartbeat(tell: Callable[[], None]) -> Iterator[None]:
    """Context manager: about once a second, `tell` is called from the loops inside that ask their clock (`runtime/clock.py`)."""
    token = _pulse.set(_Pulse(tell))
    try:
        yield
    finally:
        _pulse.reset(token)


def beat() -> None:
    """A heartbeat, if one is due. Cost: 0.1 microseconds."""
    if (pulse := _pulse.get()) is not None:
        pulse()


@contextmanager
def metered() -> Iterator[Meter]:
    """Context manager: the loops of the code inside keep this meter."""
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def staged(
    items: Sequence[T],
    *,
    weights: Sequence[float] | None = None,
    share: float = 1.0,
    detail: Callable[[T], str] | None = None,
) -> Iterator[T]:
    """The items, each a share of the work, for a loop of a long job: the meter in force knows which is under way.

    `weights`: how much of the work each is; equal by default. A loop inside divides the share of the item under way.
    `share`: of the work that is left, what these are together; a loop that follows has the rest. `detail`: what is done with an
    item. Cost: a microsecond per item.
    """
    meter = _meter.get()
    if meter is None or not len(items):
        yield from items
        return
    before, start, width = meter.detail, meter.share, share * meter.width
    rest = meter.width - width
    whole = sum(weights) if weights else float(len(items))
    done = 0.0
    try:
        for number, item in enumerate(items):
            weight = weights[number] if weights else 1.0
            meter.share, meter.width = start + width * done / whole, width * weight / whole
            if detail is not None:
                meter.detail = detail(item)
            yield item
            done += weight
    finally:  # whoever leaves early is done with all of them
        meter.share, meter.width, meter.detail = start + width, rest, before


@contextmanager
def portion(share: float, detail: str = "") -> Iterator[None]:
    """Context manager: what runs inside is this share of the work that is left. Cost: a microsecond."""
    for _ in staged([detail], share=share, detail=str if detail else None):
        yield


def gauge() -> Callable[[float, str], None]:
    """A function that notes what share (0 to 1) of the item under way is done by now, and what is done with the rest.

    For work whose parts end in no known order; it contains no `staged` loop.
    """
    meter = _meter.get() or Meter()
    start, width = meter.share, meter.width

    def note(share: float, detail: str) -> None:
        meter.share, meter.detail = start + width * share, detail

    return note
