"""Marks of a model: failed diagnoses, after which its survivors may only be hard to attack."""

from robustbench_rkhs.verdicts.about import Described

UNDIAGNOSED = "undiagnosed"
"""Mark of an evaluation whose diagnosis was switched off, or not reached."""
BATCH_DEPENDENT, RANDOMISED = "batch_dependent", "randomised"
"""Marks of a model whose answer to an image is no function of that image: of its batch, or drawn."""
NO_FUNCTION = (BATCH_DEPENDENT, RANDOMISED)
TEST_ABOVE_TRAINING = "test_above_training"
"""Mark of a model that is better on test images than on its training images."""
ABOUT_THE_MODEL = (*NO_FUNCTION, TEST_ABOVE_TRAINING)
"""Diagnoses that say nothing of whether attacks can be believed."""
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
    if any(map(diagnosed, evaluations)):
        found.pop(UNDIAGNOSED, None)
    return found


def diagnosed(evaluation: Described) -> bool:
    """Whether it was diagnosed for attacks that cannot be believed."""
    return any(one.name not in ABOUT_THE_MODEL for one in evaluation.about.diagnostics)


def no_function(evaluation: Described) -> str:
    """Why no accuracy of this evaluation is told, not even the clean one: `name: sentence`; empty where they are."""
    found = {name: words for name, words in marks(evaluation).items() if name in NO_FUNCTION}
    return "; ".join(f"{name}: {words}" if words else name for name, words in found.items())


def doubts(*evaluations: Described) -> list[str]:
    """The marks as lines of text: `name: sentence`."""
    return [f"{name}: {words}" if words else name for name, words in marks(*evaluations).items()]
