"""Messages of a running job to whoever started it."""

from collections.abc import Callable

Say = Callable[[str], None]
"""Takes one line of text. The library never prints: the command line passes what prints it."""
