"""Error messages of other libraries, quoted in one line."""

import re

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
"""Terminal escape sequences: CSI, OSC and the short ones."""


def reason(error: BaseException | str) -> str:
    """The first non-empty line of a message, without escape codes; the error's type if all lines are empty.

    YAML messages start with what the parser was doing, so for them: the problem and its line.
    """
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    text = f"line {mark.line + 1}: {problem}" if problem and mark else str(error)
    lines = ESCAPES.sub("", text).expandtabs(1).splitlines()
    printable = ("".join(sign for sign in line if sign.isprintable()).strip() for line in lines)
    return next((line for line in printable if line), "no reason given" if isinstance(error, str) else type(error).__name__)


def cause(error: BaseException) -> str:
    """`Type: reason` of an error in foreign code, where the type is as informative as the message."""
    kind, words = type(error).__name__, reason(error)
    return words if words == kind else f"{kind}: {words}"
