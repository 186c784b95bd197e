"""A thread that calls a function several times a second, so that what a command shows never stands still."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 0.25
"""Seconds between two calls."""
LOCK = threading.RLock()
"""Whoever changes or draws what is shown holds it, and nobody does while a process is forked."""
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


@contextmanager
def ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Context manager: meanwhile `tick` is called about four times a second, in a thread of its own, under LOCK.

    It is not called again after an error: nothing can be shown then, and the work goes on.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(EVERY):
            with LOCK:
                if ended.is_set():
                    return
                try:
                    tick()
                except Exception:  # a closed terminal or pipe
                    return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
