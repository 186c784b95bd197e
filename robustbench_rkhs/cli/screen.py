"""Where tables are printed, and what a command ends with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console_of_width(width: int, stderr: bool) -> "Console":
    """A terminal as wide as it is; anything else of this width."""
    from rich.console import Console

    screen = Console(stderr=stderr, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = width
    return screen


def told(screen: "Console", line: str) -> None:
    """A line as it is, whatever it holds."""
    screen.print(line, markup=False, highlight=False)


def ending(screen: "Console", kind: str, found: dict[str, Any], written: Sequence[Path], as_json: bool) -> None:
    """Which files were written; and, where asked for, everything found as one JSON object on stdout."""
    files = [str(path) for path in written]
    told(screen, f"{kind}: {' '.join(files)}")
    if as_json:
        print(json.dumps(found | {"files": files}))
