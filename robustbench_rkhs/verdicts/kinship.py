"""Whether tables are about one function: equal keys, and logits on the fixed images that agree."""

from collections.abc import Sequence

from robustbench_rkhs.verdicts.about import About
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verifier.probes import agree


def same_function(one: About, other: About) -> bool:
    """Whether both are about one function. Tables that say no key (none that was evaluated) are told apart by their weights."""
    if not one.key or not other.key:
        return one.key == other.key and one.weights == other.weights
    return one.key == other.key and (not one.logits or not other.logits or agree(one.logits, other.logits))


def functions(evaluations: Sequence[Record]) -> list[int]:
    """A number for each evaluation: equal for those of one function."""
    firsts: list[Record] = []
    numbers = []
    for evaluation in evaluations:
        found = next((place for place, first in enumerate(firsts) if same_function(first.about, evaluation.about)), len(firsts))
        if found == len(firsts):
            firsts.append(evaluation)
        numbers.append(found)
    return numbers
