"""Error messages of other libraries, quoted in one line."""

import re
from json import JSONDecodeError

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
"""Terminal escape sequences: CSI, OSC and the short ones."""


def reason(error: BaseException | str) -> str:
    """The first non-empty line of a message, without escape codes; the error's type if all lines are empty.

    YAML messages start with what the parser was doing, so for them: the problem and its line. Of an error of the system its words,
    without its number and without the path, which whoever tells it names; of JSON the line and column first.
    """
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    text = f"line {mark.line + 1}: {problem}" if problem and mark else str(error)
    if isinstance(error, OSError) and isinstance(error.strerror, str) and error.strerror:
        text = _lowered(error.strerror)
    elif isinstance(error, JSONDecodeError):
        text = f"line {error.lineno}, column {error.colno}: {_lowered(error.msg)}"
    lines = ESCAPES.sub("", text).expandtabs(1).splitlines()
    printable = ("".join(sign for sign in line if sign.isprintable()).strip() for line in lines)
    return next((line for line in printable if line), "no reason given" if isinstance(error, str) else type(error).__name__)


def cause(error: BaseException) -> str:
    """`Type: reason` of an error in foreign code, where the type is as informative as the message."""
    kind, words = type(error).__name__, reason(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        words += f": {str(error.filename)!r}"
    return words if words == kind else f"{kind}: {words}"


def _lowered(text: str) -> str:
    """A sentence as the part of another: its first letter is small, unless it is a word by itself, as in I/O."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
