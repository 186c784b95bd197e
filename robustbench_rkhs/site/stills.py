"""Still pictures of charts, as svg and png; by a process of its own where a build can do other work while that one starts."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import vl_convert

SCALE = 2.0
"""Pixels of the png per unit."""
CHILD = """
import json, struct, sys
import vl_convert
out = sys.stdout.buffer
vl_convert.vegalite_to_svg({"data": {"values": [{"a": 1}]}, "mark": "point", "encoding": {"x": {"field": "a"}}})
for line in sys.stdin:
    asked = json.loads(line)
    svg = vl_convert.vegalite_to_svg(asked["spec"])
    png = vl_convert.svg_to_png(svg, scale=asked["scale"])
    for content in (svg.encode(), png):
        out.write(struct.pack("<Q", len(content)) + content)
    out.flush()
"""
"""A program that draws a first chart at once, half a second, and then each that it is asked for; it ends with its input."""
_beside: ContextVar["Beside | None"] = ContextVar("beside", default=None)


class Beside:
    """A process that draws; none until it is begun."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it, unless it runs."""
        if self.process is not None:
            return
        # -P: no module of the folder that the build was called in; a session of its own: Ctrl-C ends it with its input
        command, pipe = [sys.executable, "-P", "-c", CHILD], subprocess.PIPE
        with suppress(OSError):
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True)

    def end(self) -> None:
        """End it with its input."""
        if self.process is not None:
            with suppress(OSError):
                self.process.communicate()


@contextmanager
def drawn_beside() -> Iterator[Callable[[], None]]:
    """Context manager: a call of what it gives starts a process, which then draws what `begin_stills` asks for."""
    beside = Beside()
    token = _beside.set(beside)
    try:
        yield beside.begin
    finally:
        _beside.reset(token)
        beside.end()


def begin_stills(spec: dict[str, Any]) -> Callable[[], tuple[bytes, bytes]]:
    """Have a chart drawn; a call of what it gives waits for its svg and png. One at a time.

    Cost: 0.1 s, and half a second for the first one that a process draws.
    """
    beside = _beside.get()
    if beside is not None and beside.process is not None:
        with suppress(OSError, ValueError):
            _ask(beside.process, spec)
            return partial(_waited, beside.process, spec)
    return partial(_drawn, spec)


def _drawn(spec: dict[str, Any]) -> tuple[bytes, bytes]:
    """Drawn by this process."""
    svg = vl_convert.vegalite_to_svg(spec)
    return svg.encode(), vl_convert.svg_to_png(svg, scale=SCALE)


def _ask(child: "subprocess.Popen[bytes]", spec: dict[str, Any]) -> None:
    """Raises OSError where that process is gone."""
    assert child.stdin is not None
    child.stdin.write(json.dumps({"spec": spec, "scale": SCALE}).encode() + b"\n")
    child.stdin.flush()


def _waited(child: "subprocess.Popen[bytes]", spec: dict[str, Any]) -> tuple[bytes, bytes]:
    """What that process draws; where it is gone, or could not draw this, drawn here."""
    try:
        return _answer(child), _answer(child)
    except (OSError, ValueError):
        return _drawn(spec)


def _answer(child: "subprocess.Popen[bytes]") -> bytes:
    """Raises OSError or ValueError where there is none."""
    assert child.stdout is not None
    length = int.from_bytes(child.stdout.read(8), "little")
    content = child.stdout.read(length)
    if not length or len(content) != length:
        raise ValueError("the process that draws has ended")
    return content
