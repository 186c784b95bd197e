"""Events: what happens during long work, as typed values for whoever listens. The command line renders them."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.durations import span, to_go

FEW = 3
"""Eps of which a line shows the bounds."""


class Event(BaseModel):
    """Something that happened during long work. `str(event)` is a line of text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: str


class Message(Event):
    """A note to the user, in one line."""

    kind: Literal["message"] = "message"
    text: str

    def __str__(self) -> str:
        return self.text


class PhaseStarted(Event):
    """Another kind of work begins: predictions, certificates, attacks, diagnosis, training, drawing ..."""

    kind: Literal["phase_started"] = "phase_started"
    phase: str

    def __str__(self) -> str:
        return self.phase


class Progress(Event):
    """How far a method has come. At its start, whenever images are done, and about once a second."""

    kind: Literal["progress"] = "progress"
    phase: str
    method: str
    """The method at work; empty where the phase has only one."""
    done: int
    total: int
    unit: str = "images"
    """What is counted."""
    under_way: float = 0.0
    """How many the work done inside running ones is worth."""
    seconds: float
    """Since the method began on these."""
    left: float | None = None
    """Seconds to go for these at the measured speed; None while that is not known."""
    detail: str = ""
    """What the method is doing."""

    @property
    def title(self) -> str:
        """Phase, method and detail."""
        named = ", ".join(filter(None, [self.method, self.detail]))
        return f"{self.phase}: {named}" if named else self.phase

    @property
    def counted(self) -> str:
        """How many are done, and how far the work is where it has come further."""
        whole, begun = (int(100 * part / max(self.total, 1)) for part in (self.done, self.done + self.under_way))
        share = f" ({min(begun, 99)}% of the work)" if begun > whole < 99 else ""
        return f"{self.done} of {self.total} {self.unit}{share}"

    def __str__(self) -> str:
        return f"{self.title}: {self.counted}{to_go(self.left)}"


class Between(BaseModel):
    """What is known of the robust accuracy at one eps: shares of all images."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    eps: float
    low: float
    """Certified, and broken by nothing."""
    high: float
    """Classified correctly, and not broken yet."""


class BoundsChanged(Event):
    """The robust accuracy is known more closely. True at any moment of an evaluation, whatever comes later."""

    kind: Literal["bounds_changed"] = "bounds_changed"
    images: int
    bounds: tuple[Between, ...]
    """At each eps of the evaluation, the smallest first."""

    def __str__(self) -> str:
        return f"robust {robust(self.bounds)}"


class TrainingStep(Event):
    """A step of a training was taken: the first, and then each whose loss is known."""

    kind: Literal["training_step"] = "training_step"
    epoch: int
    """Counted from 0, as in metrics.jsonl."""
    epochs: int
    step: int
    """Steps of this epoch that were taken."""
    steps: int
    """Steps of an epoch."""
    loss: float
    """Its mean over the epoch so far."""
    images_per_second: float | None = None
    """None while the speed is not known."""
    left: float | None = None
    """Seconds to go in the training at the measured speed; None while that is not known."""

    @property
    def title(self) -> str:
        """Where the training is, and its loss."""
        return f"epoch {self.epoch + 1} of {self.epochs}, step {self.step} of {self.steps}: loss {self.loss:.4f}"

    @property
    def speed(self) -> str:
        """Images per second as text; empty where that is not known."""
        return "" if self.images_per_second is None else f"{self.images_per_second:,.0f} images/s"

    def __str__(self) -> str:
        return f"{', '.join(filter(None, [self.title, self.speed]))}{to_go(self.left)}"


class EpochFinished(Event):
    """An epoch of a training ended, with its metrics, as in metrics.jsonl."""

    kind: Literal["epoch_finished"] = "epoch_finished"
    epoch: int
    """Counted from 0."""
    epochs: int
    metrics: Mapping[str, Any]

    def __str__(self) -> str:
        shown = [f"loss {self.metrics['loss']:.4f}", f"lr {self.metrics['lr']:.4g}"]
        scores = {key.removeprefix("validation_"): value for key, value in self.metrics.items() if "validation" in key}
        shown += [f"validation {', '.join(f'{key} {value:.3f}' for key, value in scores.items())}"] if scores else []
        shown += [f"tau in force {self.metrics['tau_0']:.4f}"] if "tau_0" in self.metrics else []
        return f"epoch {self.epoch + 1} of {self.epochs}: {', '.join(shown)}"


class Finished(Event):
    """The work ended, or was ended."""

    kind: Literal["finished"] = "finished"
    seconds: float
    complete: bool = True
    """False where a budget or the keyboard ended it."""

    def __str__(self) -> str:
        return f"{'finished' if self.complete else 'ended before its end'} after {span(self.seconds)}"


AnyEvent = Annotated[
    Message | PhaseStarted | Progress | BoundsChanged | TrainingStep | EpochFinished | Finished, Field(discriminator="kind")
]
"""Every event, told apart by its kind."""
OnEvent = Callable[[Event], object]
"""What is called with each event. `print` prints a line each."""

_listeners: ContextVar[tuple[OnEvent, ...]] = ContextVar("listeners", default=())


@contextmanager
def listening(on_event: OnEvent | None) -> Iterator[None]:
    """Context manager: events of the code inside go to `on_event` too, besides those who listen already. None adds nobody.

    New threads and processes start without listeners.
    """
    if on_event is None:
        yield
        return
    token = _listeners.set((*_listeners.get(), _Careful(on_event)))
    try:
        yield
    finally:
        _listeners.reset(token)


@contextmanager
def listening_alone(on_event: OnEvent) -> Iterator[None]:
    """As `listening`, and nobody else listens inside: in a forked process, who listened before is in another one."""
    token = _listeners.set((_Careful(on_event),))
    try:
        yield
    finally:
        _listeners.reset(token)


def heard() -> bool:
    """Whether anybody listens."""
    return bool(_listeners.get())


def emit(event: Event) -> None:
    """Calls every listener with this event."""
    for listener in _listeners.get():
        listener(event)


class _Careful:
    """A listener whose exceptions lose no results: the first is told in a warning, and the work goes on.

    KeyboardInterrupt, and whatever else is no Exception, ends the work.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event, self.failed = on_event, False

    def __call__(self, event: Event) -> None:
        try:
            self.on_event(event)
        except Exception as error:
            if not self.failed:
                self.failed = True
                warnings.warn(f"on_event failed, the work goes on: {cause(error)}", stacklevel=2)


def robust(bounds: tuple[Between, ...]) -> str:
    """Bounds as text, of at most FEW eps: those where most is open."""
    few = sorted(sorted(bounds, key=lambda one: one.low - one.high)[:FEW], key=lambda one: one.eps)
    parts, before = list[str](), False
    for one in few:
        low, high, at = f"{one.low:.1%}", f"{one.high:.1%}", f" at {radius_text(one.eps)}" if len(bounds) > 1 else ""
        wide = low != high
        parts.append(f"{'between ' * (wide and not before)}{f'{low} and {high}' if wide else high}{at}")
        before = wide
    return ", ".join(parts) + " so far" * any(one.low != one.high for one in bounds)
