"""Memory that was freed, given back to the system."""

import ctypes
import sys

EVERY = 2**25
"""Bytes that are read, used and freed between two times."""


class Freed:
    """Gives freed pages of the C library's heap back to the system now and then, while large blocks are read one after another.

    Each block leaves a hole beside whatever small was allocated meanwhile, into which the next block does not fit: without this
    the heap grows with every block. Does nothing where the C library has no such call (glibc has). Cost: milliseconds each time.
    """

    def __init__(self) -> None:
        self.bytes = 0

    def read(self, size: int) -> None:
        """A block of so many bytes was read."""
        self.bytes += size
        if self.bytes >= EVERY:
            self.bytes = 0
            self.give_back()

    def give_back(self) -> None:
        """Now."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if trim is not None:
            trim(0)


FREED = Freed()
"""The heap is one for the process, and so is this."""
