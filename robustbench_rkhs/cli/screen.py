"""Printing of tables, lines and JSON."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from robustbench_rkhs.cli.loading import LOADING
from robustbench_rkhs.runtime.sinks import for_terminal

if TYPE_CHECKING:
    from rich.console import Console

_output: ContextVar[TextIO | None] = ContextVar("_output", default=None)
"""The stream for JSON while everything else is printed to stderr."""


def console_of_width(width: int, stderr: bool) -> "Console":
    """A console with the terminal's width, or else this width. Text is printed literally, without terminal control codes."""
    from rich.console import Console
    from rich.text import Text

    class Screen(Console):
        def render_str(self, text: str, **settings: Any) -> Text:
            return super().render_str(for_terminal(text), **{**settings, "markup": False, "emoji": False})

    screen = Screen(stderr=stderr, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = width
    return screen


def folded(paths: Iterable[str | Path | None]) -> list[str]:
    """Paths as text, those that differ by their suffix alone as one: curve.{pdf,png,svg}."""
    suffixes: dict[str, list[str]] = {}
    for path in paths:
        stem, dot, suffix = str(path).rpartition(".")
        suffixes.setdefault(stem if dot else str(path), []).append(suffix if dot else "")
    return [
        f"{stem}.{{{','.join(sorted(some))}}}" if len(some) > 1 else f"{stem}.{some[0]}".rstrip(".")
        for stem, some in suffixes.items()
    ]


def told(screen: "Console", line: str) -> None:
    """Prints a line literally."""
    LOADING.heard()
    screen.print(line, markup=False, highlight=False)


def printed(text: str, stderr: bool = False) -> None:
    """Prints lines literally, without tables."""
    LOADING.heard()
    print(for_terminal(text), file=sys.stderr if stderr else sys.stdout, flush=True)


def ending(screen: "Console", kind: str, found: Mapping[str, Any], written: Sequence[Path], as_json: bool) -> None:
    """Prints the files that were written and, if wanted, all results as one JSON object on stdout."""
    files = [str(path) for path in written]
    told(screen, f"{kind}: {' '.join(files)}")
    if as_json:
        emit({**found, "files": files})


def emit(found: Mapping[str, Any]) -> None:
    """Prints one standard JSON object on stdout: NaN and infinity become null."""
    where = _output.get() or sys.stdout
    print(json.dumps(strict(found), allow_nan=False), file=where, flush=True)


def relay(text: str) -> None:
    """Prints on stdout what the same command printed there in another process: with --json, its one object."""
    print(for_terminal(text), file=_output.get() or sys.stdout, flush=True)


def strict(value: Any) -> Any:
    """The value converted for JSON."""
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
    """Inside this context, all prints (of libraries or the user's model) go to stderr; only `emit` reaches stdout."""
    output, number, kept = sys.stdout, None, None
    try:
        number = output.fileno()
        output.flush()
        kept = os.dup(number)
        os.dup2(sys.stderr.fileno(), number)  # also what is printed below Python
        output = os.fdopen(os.dup(kept), "w", encoding="utf-8")
    except (OSError, ValueError, AttributeError):
        pass  # stdout is not a system file: a notebook, a test
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
