"""Where tables are printed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console_of_width(width: int, stderr: bool) -> "Console":
    """A terminal as wide as it is; anything else of this width."""
    from rich.console import Console

    screen = Console(stderr=stderr, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = width
    return screen
