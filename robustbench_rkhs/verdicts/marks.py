"""Marks of a model: diagnoses that tripped, which say that its survivors may only be hard to attack."""

from robustbench_rkhs.verdicts.states import Evaluation

UNDIAGNOSED = "undiagnosed"
"""Mark of an evaluation whose diagnosis was switched off, or not reached."""
UNKNOWN = "no diagnosis was run, so nothing says whether its attacks can be believed"


def marks(*evaluations: Evaluation) -> dict[str, str]:
    """Name of each diagnosis that tripped in any of these, and its sentence; empty where none did, or none ran.

    Diagnoses are about weights: pass every evaluation of the same weights, so that no choice of evaluation hides one. Where none of
    them was diagnosed though it should have been, that is a mark too.
    """
    found: dict[str, str] = {}
    for evaluation in evaluations:
        said = evaluation.about.get("diagnostics") or []
        for one in said:
            if isinstance(one, dict) and one.get("tripped"):
                found.setdefault(str(one.get("name", "unnamed")), str(one.get("words", "")))
        for name in evaluation.about.get("marks") or []:
            found.setdefault(str(name), UNKNOWN if name == UNDIAGNOSED else "")
    if any(evaluation.about.get("diagnostics") for evaluation in evaluations):
        found.pop(UNDIAGNOSED, None)
    return found


def doubts(*evaluations: Evaluation) -> list[str]:
    """The marks as lines of text: `name: sentence`."""
    return [f"{name}: {words}" if words else name for name, words in marks(*evaluations).items()]
