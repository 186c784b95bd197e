"""Says while PyTorch and a model's code are imported that they still are, where that takes long."""

import threading
import time
from collections.abc import Callable

from robustbench_rkhs.cli.ticker import LOCK

EVERY = 5.0
"""Seconds between two lines: a slow disk or a busy machine takes a quarter of a minute for PyTorch alone."""


class Loading:
    """A thread that says so every few seconds from `begin` to `end`."""

    def __init__(self, every: float = EVERY) -> None:
        self.every = every
        self._ended: threading.Event | None = None

    def begin(self, name: str, say: Callable[[str], object]) -> None:
        """Say `NAME: still loading PyTorch, 5 s so far` until the end; nothing more where it cannot be said."""
        ended, began = threading.Event(), time.monotonic()
        self._ended = ended

        def run() -> None:
            while not ended.wait(self.every):
                with LOCK:
                    if ended.is_set():
                        return
                    try:
                        say(f"{name}: still loading PyTorch, {time.monotonic() - began:.0f} s so far")
                    except Exception:  # a closed terminal or pipe
                        return

        threading.Thread(target=run, daemon=True).start()

    def end(self) -> None:
        """Say no more."""
        if self._ended is not None:
            with LOCK:
                self._ended.set()


LOADING = Loading()
"""That of the command that runs in this process."""
