"""Says that PyTorch is still being imported, where that takes long."""

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
    """A thread that says so every few seconds, while `imported` says that it goes on; it ends with the import, or by `end`."""

    def __init__(self, every: float = EVERY, imported: Callable[[], bool | None] = being_imported) -> None:
        self.every, self.imported = every, imported
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def begin(self, name: str, say: Callable[[str], object]) -> None:
        """Say `NAME: still loading PyTorch, 5 s so far`; nothing more where it cannot be said."""
        began = time.monotonic()

        def run() -> None:
            while not self.ended.wait(self.every):
                if (now := self.imported()) is None:
                    continue
                if not now:
                    return
                try:
                    say(f"{name}: still loading PyTorch, {time.monotonic() - began:.0f} s so far")
                except Exception:  # a closed terminal or pipe
                    return

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Say no more."""
        self.ended.set()
        if self.thread is not None:
            self.thread.join(self.every)  # a pipe that nobody reads may hold it


LOADING = Loading()
"""That of the command that runs in this process."""
