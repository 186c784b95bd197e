"""Marks of a model: failed diagnoses, after which its survivors may only be hard to attack."""

from robustbench_rkhs.verdicts.about import Described

UNDIAGNOSED = "undiagnosed"
"""Mark of an evaluation whose diagnosis was switched off, or not reached."""
UNKNOWN = "no diagnosis was run, so nothing says whether its attacks can be believed"


def marks(*evaluations: Described) -> dict[str, str]:
    """Name and sentence of each diagnosis that failed in any of these; empty where none did, or none ran.

    Diagnoses are about a function: pass every evaluation of it, so that no choice of evaluation hides one. If none of
    them was diagnosed though it should have been, that is a mark too.
    """
    found: dict[str, str] = {}
    for evaluation in evaluations:
        for one in evaluation.about.diagnostics:
            if one.tripped:
                found.setdefault(one.name, one.words)
        for name in evaluation.about.marks:
            found.setdefault(name, UNKNOWN if name == UNDIAGNOSED else "")
    if any(evaluation.about.diagnostics for evaluation in evaluations):
        found.pop(UNDIAGNOSED, None)
    return found


def doubts(*evaluations: Described) -> list[str]:
    """The marks as lines of text: `name: sentence`."""
    return [f"{name}: {words}" if words else name for name, words in marks(*evaluations).items()]
