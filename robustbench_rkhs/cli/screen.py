"""Where tables, lines and JSON are printed."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from robustbench_rkhs.runtime.sinks import for_terminal

if TYPE_CHECKING:
    from rich.console import Console

_output: ContextVar[TextIO | None] = ContextVar("_output", default=None)
"""Where JSON goes while everything else that is printed goes to stderr."""


def console_of_width(width: int, stderr: bool) -> "Console":
    """A terminal as wide as it is; anything else of this width. Every text is shown as it is, and does nothing to the terminal."""
    from rich.console import Console
    from rich.text import Text

    class Screen(Console):
        def render_str(self, text: str, **settings: Any) -> Text:
            return super().render_str(for_terminal(text), **{**settings, "markup": False, "emoji": False})

    screen = Screen(stderr=stderr, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = width
    return screen


def told(screen: "Console", line: str) -> None:
    """A line as it is, whatever it holds."""
    screen.print(line, markup=False, highlight=False)


def printed(text: str, stderr: bool = False) -> None:
    """Lines as they are, where there are no tables."""
    print(for_terminal(text), file=sys.stderr if stderr else sys.stdout, flush=True)


def ending(screen: "Console", kind: str, found: Mapping[str, Any], written: Sequence[Path], as_json: bool) -> None:
    """Which files were written; and, where asked for, everything found as one JSON object on stdout."""
    files = [str(path) for path in written]
    told(screen, f"{kind}: {' '.join(files)}")
    if as_json:
        emit({**found, "files": files})


def emit(found: Mapping[str, Any]) -> None:
    """One JSON object on stdout, by the standard: what is no number there (NaN, infinity) is null."""
    where = _output.get() or sys.stdout
    print(json.dumps(strict(found), allow_nan=False), file=where, flush=True)


def strict(value: Any) -> Any:
    """As JSON takes it."""
    if isinstance(value, Mapping):
        return {str(key): strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return strict(value.tolist()) if hasattr(value, "tolist") else str(value)


@contextmanager
def json_alone() -> Iterator[None]:
    """Whatever prints meanwhile, a library or a user's own model, prints to stderr; only `emit` reaches stdout."""
    output, number, kept = sys.stdout, None, None
    try:
        number = output.fileno()
        output.flush()
        kept = os.dup(number)
        os.dup2(sys.stderr.fileno(), number)  # what is printed below Python too
        output = os.fdopen(os.dup(kept), "w", encoding="utf-8")
    except (OSError, ValueError, AttributeError):
        pass  # no file of the system's: a notebook, a test
    token = _output.set(output)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _output.reset(token)
        if number is not None and kept is not None:
            output.close()
            os.dup2(kept, number)
            os.close(kept)
