"""The attacks that run automatically on the survivors of a model that failed a diagnosis."""

from collections.abc import Iterable, Sequence

from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.base import Attack
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.ensemble import Ensemble
from robustbench_rkhs.attacks.square.attack import Square

DRAWN = 16
"""Passes over which the output of a randomized model is averaged."""


def escalated(protocol: Sequence[Attack], marks: Iterable[str]) -> tuple[Attack, ...]:
    """The further attacks for failed diagnoses, in the box of the protocol and with its straight-through layers.

    Any mark: APGD on the margin from 5 starts, the ensemble's battery `plus` (5 restarts, every loss and target), and Square with
    10,000 queries. A randomized model: APGD on the margin and at three classes, and Square with 1,000 queries, every output the
    mean of 16 passes. No failed diagnosis: none. `softmaxed`
    needs no extra attack: the margin of probabilities or log-probabilities orders images as that of logits does.
    """
    marked = set(marks)
    if not marked:
        return ()
    box = protocol[0].box if protocol else "unit"
    straight = {name for attack in protocol if isinstance(attack, EngineAttack) for name in attack.straight_through}
    shared = {"box": box, "straight_through": tuple(sorted(straight))}
    if "randomised" in marked:
        return (
            Ensemble(
                version="custom", attacks=(APGD(loss="margin"), APGD(loss="targeted", targets=3)), expectation=DRAWN, **shared
            ),
            Square(queries=1000, expectation=DRAWN, **shared),
        )
    return APGD(loss="margin", restarts=5, **shared), Ensemble(version="plus", **shared), Square(queries=10_000, **shared)
