"""What a command shows while it works: the events of its work, rendered."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from robustbench_rkhs.cli.screen import told
from robustbench_rkhs.runtime.events import Event, Message, listening

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def shown(screen: "Console") -> Iterator[None]:
    """Context manager: messages of the code inside are printed."""

    def on_event(event: Event) -> None:
        if isinstance(event, Message):
            told(screen, event.text)

    with listening(on_event):
        yield
