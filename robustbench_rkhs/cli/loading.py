"""Says that PyTorch is still being imported, and then that a command still starts, until something else is heard of it."""

import sys
import threading
import time
from collections.abc import Callable

EVERY = 5.0
"""Seconds between two lines: a slow disk or a busy machine takes a quarter of a minute for PyTorch alone."""


def being_imported(name: str = "torch") -> bool | None:
    """Whether a package is being imported; None before that begins."""
    if (module := sys.modules.get(name)) is None:
        return None
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class Loading:
    """A thread that says so every few seconds, from when `imported` says that it began, until `heard` or `end`."""

    def __init__(self, every: float = EVERY, imported: Callable[[], bool | None] = being_imported) -> None:
        self.every, self.imported = every, imported
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def begin(self, name: str, say: Callable[[str], object]) -> None:
        """Say `NAME: still loading PyTorch, 5 s so far`, then `still starting`; nothing more where it cannot be said."""
        began = time.monotonic()
        self.ended.clear()

        def run() -> None:
            while not self.ended.wait(self.every):
                if (now := self.imported()) is None:
                    continue
                what = "loading PyTorch" if now else "starting"  # the packages after it take as long on a busy machine
                try:
                    say(f"{name}: still {what}, {time.monotonic() - began:.0f} s so far")
                except Exception:  # a closed terminal or pipe
                    return

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def heard(self) -> None:
        """Say no more, as something else is said from now on."""
        self.ended.set()

    def end(self) -> None:
        """Say no more, and wait until what is being said is said."""
        self.ended.set()
        if self.thread is not None:
            self.thread.join(self.every)  # a pipe that nobody reads may hold it


LOADING = Loading()
"""That of the command that runs in this process."""
