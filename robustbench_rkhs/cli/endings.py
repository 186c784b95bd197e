"""Exit codes of the commands."""

from collections.abc import Iterable
from typing import Any

COMPLETE, FAILED, BAD_INPUT, OUT_OF_BUDGET, INTERRUPTED = 0, 1, 2, 3, 130
"""All that was due ran and holds; a condition does not hold, a certificate was broken or a claim refuted; what was asked for cannot
be; the budget ended before all that was due ran; the keyboard did. The last of these to apply to any model is the command's, but
that what failed stays failed: no more time mends it."""


def code_of(failed: bool, reasons: Iterable[str | None]) -> int:
    """The exit code of a command whose evaluations ended before their end for these reasons (None: they did not)."""
    known = set(reasons)
    if "interrupted" in known:
        return INTERRUPTED
    return FAILED if failed else OUT_OF_BUDGET if known - {None} else COMPLETE


def completeness(about: Any) -> dict[str, Any]:
    """What --json says of it: whether all that was due ran, and why not."""
    reason = None if about.complete else about.incomplete_because or "unknown"
    return {"complete": about.complete, "incomplete_because": reason}
