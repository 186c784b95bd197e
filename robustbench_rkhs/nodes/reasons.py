"""Other people's error messages, quoted in one line."""

import re

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
"""What colours a terminal and moves its cursor: CSI, OSC and the short sequences."""


def reason(error: BaseException | str) -> str:
    """The first line of a message that says anything, whole, without escape codes; the error's kind where no line does.

    YAML's messages begin with what the parser was doing: of them, the problem and its line.
    """
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    text = f"line {mark.line + 1}: {problem}" if problem and mark else str(error)
    lines = ESCAPES.sub("", text).expandtabs(1).splitlines()
    printable = ("".join(sign for sign in line if sign.isprintable()).strip() for line in lines)
    return next((line for line in printable if line), "no reason given" if isinstance(error, str) else type(error).__name__)


def cause(error: BaseException) -> str:
    """`Kind: reason`, of an error in code that is not ours, where the kind says as much as the words."""
    kind, words = type(error).__name__, reason(error)
    return words if words == kind else f"{kind}: {words}"
