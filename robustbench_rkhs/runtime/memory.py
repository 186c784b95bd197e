"""Returns freed heap memory to the operating system."""

import ctypes
import sys
import time

EVERY = 2**25
"""Bytes read between two calls of `give_back`."""
PAUSE = 0.5
"""Seconds between two calls of it after jobs."""


class Freed:
    """Returns freed heap pages to the system at intervals while large blocks are read one after another.

    Without this the heap grows with every block, as small allocations in between fragment it. Uses glibc's malloc_trim; does
    nothing with other C libraries. Cost: milliseconds per call.
    """

    def __init__(self) -> None:
        self.bytes, self.last = 0, time.monotonic()

    def read(self, size: int) -> None:
        """Record that a block of `size` bytes was read."""
        self.bytes += size
        if self.bytes >= EVERY:
            self.bytes = 0
            self.give_back()

    def ended(self) -> None:
        """Record that a job ended, which leaves holes where its arrays were."""
        if time.monotonic() - self.last >= PAUSE:
            self.give_back()

    def give_back(self) -> None:
        """Return freed pages to the system now."""
        self.last = time.monotonic()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if trim is not None:
            trim(0)


FREED = Freed()
"""One instance per process, as there is one heap."""
