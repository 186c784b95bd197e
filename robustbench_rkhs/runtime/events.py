"""Events: what happens during long work, as typed values for whoever listens. The command line renders them."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from robustbench_rkhs.nodes.reasons import cause


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

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1} of {self.epochs}, step {self.step} of {self.steps}: loss {self.loss:.4f}"


class EpochFinished(Event):
    """An epoch of a training ended, with its metrics, as in metrics.jsonl."""

    kind: Literal["epoch_finished"] = "epoch_finished"
    epoch: int
    """Counted from 0."""
    epochs: int
    metrics: Mapping[str, Any]

    def __str__(self) -> str:
        shown = {"loss": f"{self.metrics['loss']:.4f}", "lr": f"{self.metrics['lr']:.4g}"}
        shown |= {key.replace("_", " "): f"{value:.3f}" for key, value in self.metrics.items() if "validation" in key}
        shown |= {"tau in force": f"{self.metrics['tau_0']:.4f}"} if "tau_0" in self.metrics else {}
        return f"epoch {self.epoch + 1} of {self.epochs}: {', '.join(f'{key} {value}' for key, value in shown.items())}"


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
