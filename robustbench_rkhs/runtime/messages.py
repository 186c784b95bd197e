"""Progress messages of a running job to its caller."""

from collections.abc import Callable

Say = Callable[[str], None]
"""Callback for one line of text. The library never prints; the command line passes a callback that does."""
