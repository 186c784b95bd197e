"""Returns freed heap memory to the operating system."""

import ctypes
import sys
import time

EVERY = 2**25
"""Bytes read between two calls of `give_back`."""
PAUSE, SHARE = 0.1, 0.02
"""Least seconds between two calls of it after jobs, and most of the time that they may take."""


class Freed:
    """Returns freed heap pages to the system at intervals while large blocks are read one after another.

    Without this the heap grows with every block, as small allocations in between fragment it. Uses glibc's malloc_trim; does
    nothing with other C libraries. Cost: milliseconds per call.
    """

    def __init__(self) -> None:
        self.bytes, self.next = 0, time.monotonic() + PAUSE

    def read(self, size: int) -> None:
        """Record that a block of `size` bytes was read."""
        self.bytes += size
        if self.bytes >= EVERY:
            self.bytes = 0
            self.give_back()

    def ended(self) -> None:
        """Record that a job ended, which leaves holes where its arrays were."""
        if time.monotonic() >= self.next:
            self.give_back()

    def give_back(self) -> None:
        """Return freed pages to the system now."""
        began = time.monotonic()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if trim is not None:
            trim(0)
        ended = time.monotonic()
        self.next = ended + max(PAUSE, (ended - began) / SHARE)


FREED = Freed()
"""One instance per process, as there is one heap."""
