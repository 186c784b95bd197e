"""What runs by itself on the survivors of a model that tripped a diagnosis."""

from collections.abc import Iterable, Sequence

from robustbench_rkhs.attacks.contract import Attack
from robustbench_rkhs.attacks.engine import EngineAttack
from robustbench_rkhs.diagnostics.search import RandomSearch
from robustbench_rkhs.diagnostics.walk import Persistent

DRAWN = 16
"""Passes an answer of a model that draws is the mean of."""


def escalated(protocol: Sequence[Attack], marks: Iterable[str]) -> tuple[Attack, ...]:
    """The attacks that tripped diagnoses call for beyond the protocol, in its box and with its layers passed straight through.

    Any mark: margin descent of 100 steps from 5 starts and towards 9 classes, whatever the scale of the logits, and 5,000 queries
    without gradients. A model that draws: both on the mean of 16 passes, with shorter runs. Nothing tripped: none. `softmaxed`
    needs nothing of its own: the margin of probabilities or log-probabilities orders images as that of logits does.
    """
    marked = set(marks)
    if not marked:
        return ()
    box = protocol[0].box if protocol else "unit"
    straight = {name for attack in protocol if isinstance(attack, EngineAttack) for name in attack.straight_through}
    shared = {"box": box, "straight_through": tuple(sorted(straight))}
    if "randomised" in marked:
        return (
            Persistent(steps=50, restarts=2, targets=3, expectation=DRAWN, **shared),
            RandomSearch(queries=1000, expectation=DRAWN, **shared),
        )
    return Persistent(**shared), RandomSearch(queries=5000, **shared)
