"""Whether tables are about the same function: equal keys, and agreeing logits on the fixed images."""

from collections.abc import Sequence

from robustbench_rkhs.verdicts.about import About, Described
from robustbench_rkhs.verifier.probes import agree


def same_function(one: About, other: About) -> bool:
    """Whether both are about the same function. Tables without a key are compared by their weights.

    Anyone can write a key into a table: the logits beside it show whether it is that function's. Where neither table has logits
    (the model takes no fixed images), both must be of one model's name and weights; a table without them is no kin of one with.
    """
    if not one.key or not other.key:
        return one.key == other.key and one.weights == other.weights
    if one.key != other.key:
        return False
    if one.logits and other.logits:
        return agree(one.logits, other.logits)
    return not one.logits and not other.logits and (one.model, one.weights) == (other.model, other.weights)


def functions(evaluations: Sequence[Described]) -> list[int]:
    """One number per evaluation, equal for those of the same function."""
    firsts: dict[tuple[str, str], list[tuple[int, About]]] = {}
    numbers: list[int] = []
    count = 0
    for about in (evaluation.about for evaluation in evaluations):
        alike = firsts.setdefault((about.key, "" if about.key else about.weights), [])
        found = next((number for number, first in alike if same_function(first, about)), count)
        if found == count:
            alike.append((count, about))
            count += 1
        numbers.append(found)
    return numbers
