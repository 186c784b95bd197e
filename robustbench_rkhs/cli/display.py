"""What a command shows while it works: a live display on a terminal, else plain lines on stderr."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import tyro

from robustbench_rkhs.cli.loading import LOADING
from robustbench_rkhs.cli.screen import console_of_width, printed, told
from robustbench_rkhs.cli.ticker import LOCK, ticking
from robustbench_rkhs.runtime.events import EpochFinished, Event, Message, OnEvent, listening
from robustbench_rkhs.runtime.lines import Lines

if TYPE_CHECKING:
    from rich.console import Console

Quiet = Annotated[bool, tyro.conf.arg(help="Show no progress: no live display on a terminal, no lines elsewhere.")]
"""The flag for silence."""
SHOWN = 20
"""Epochs of a training that are all printed; of more of them ten, unless they are slow."""
SLOW = 30.0
"""Seconds of an epoch that is printed in any case."""


@contextmanager
def shown(screen: "Console", quiet: bool = False, epochs: bool = False) -> Iterator[None]:
    """Context manager: messages of the code inside are printed, its progress is shown unless `quiet`.

    `epochs`: the metrics of a training's epochs are printed too, unless `quiet`.
    """

    def on_event(event: Event) -> None:
        if isinstance(event, Message) or (epochs and not quiet and isinstance(event, EpochFinished) and _due(event)):
            told(screen, str(event))

    with ExitStack() as stack:
        stack.enter_context(listening(_locked(on_event)))
        if not quiet:
            stack.enter_context(_progress(screen))
        yield


@contextmanager
def _progress(screen: "Console") -> Iterator[None]:
    """A live display on the terminal that the command writes to, or on that of stderr; lines on stderr where neither is one."""
    console = next((one for one in (screen, console_of_width(120, stderr=True)) if _movable(one)), None)
    if console is None:
        lines = Lines(lambda line: printed(line, stderr=True), messages=False)
        with listening(_locked(lines)), ticking(lines.tick):
            yield
        return
    from robustbench_rkhs.cli.live import LiveDisplay

    LOADING.heard()
    display = LiveDisplay(console, redirect_stdout=console is screen)
    try:
        with listening(_locked(display)), ticking(display.tick):
            yield
    finally:
        display.stop()


def _locked(listener: OnEvent) -> OnEvent:
    """The listener, undisturbed by the ticking thread."""

    def on_event(event: Event) -> None:
        with LOCK:
            listener(event)

    return on_event


def _movable(console: "Console") -> bool:
    """Whether it is a terminal whose cursor can be moved."""
    return console.is_interactive and not console.is_dumb_terminal and console.file.isatty()


def _due(event: EpochFinished) -> bool:
    """Whether this epoch is printed."""
    number = event.epoch + 1
    every = 1 if event.epochs <= SHOWN or event.metrics["seconds"] > SLOW else -(-event.epochs // 10)
    return number % every == 0 or number == event.epochs
