"""Whether tables are about the same function: equal keys, and agreeing logits on the fixed images."""

from collections.abc import Sequence

from robustbench_rkhs.verdicts.about import About
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verifier.probes import agree


def same_function(one: About, other: About) -> bool:
    """Whether both are about the same function. Tables without a key are compared by their weights."""
    if not one.key or not other.key:
        return one.key == other.key and one.weights == other.weights
    return one.key == other.key and (not one.logits or not other.logits or agree(one.logits, other.logits))


def functions(evaluations: Sequence[Record]) -> list[int]:
    """One number per evaluation, equal for those of the same function."""
    firsts: list[Record] = []
    numbers = []
    for evaluation in evaluations:
        found = next((place for place, first in enumerate(firsts) if same_function(first.about, evaluation.about)), len(firsts))
        if found == len(firsts):
            firsts.append(evaluation)
        numbers.append(found)
    return numbers
