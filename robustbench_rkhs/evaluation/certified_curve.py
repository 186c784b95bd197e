"""Certified radii for a curve: searched to a fine step up to the largest eps, instead of at requested eps alone."""

import math
from collections.abc import Mapping, Sequence

from robustbench_rkhs.attacks import Attack, AutoAttack, Ensemble
from robustbench_rkhs.certificates import Certificate
from robustbench_rkhs.certificates.pairwise import PairwiseCertificate
from robustbench_rkhs.certificates.relaxation import RelaxationCertificate
from robustbench_rkhs.certificates.smoothing import SmoothingCertificate

PARTS = 64
"""Radii are searched to this part of the largest eps."""
RUN = 100
"""Steps of an attack that does not say how many it takes."""
STANDARD = 7_000 + 2 * 1_910
"""Cost in forward passes of the ensemble, or AutoAttack, on an image that it does not break (ten classes)."""


def searching(method: Certificate, largest: float) -> Certificate:
    """The certificate that searches each radius up to the largest eps, to a step of 1/64 of it; others as they are."""
    if isinstance(method, RelaxationCertificate) and not method.search and largest > 0:
        return method.model_copy(update={"search": True, "step": largest / PARTS})
    if isinstance(method, SmoothingCertificate):
        return method.model_copy(update={"stopping": "fixed"})
    return method


def searched(method: Certificate) -> bool:
    """Whether its radii are the largest that it proves, and not those at which it stopped for requested eps."""
    if isinstance(method, RelaxationCertificate):
        return method.search
    if isinstance(method, SmoothingCertificate):
        return method.stopping == "fixed"
    return isinstance(method, PairwiseCertificate)  # one's own may stop wherever it likes


def pays(costs: Mapping[str, float], images: int, epsilons: Sequence[float], attacks: float) -> bool:
    """Whether searching the radii of so many images costs less than the attacks, in multiply-adds.

    costs: per image of each certificate at the requested eps, counted on the pilot: at least two balls. Searching takes one ball
    for each requested eps, and then log2 of the steps in between.
    """
    balls = 1 + len(epsilons) + math.ceil(math.log2(PARTS))
    return sum(cost / 2 * balls for cost in costs.values()) * images < attacks


def full_cost(attacks: Sequence[Attack]) -> int:
    """Passes of the fixed-budget attacks on an image that they do not break, a backward pass counted as two forward ones."""
    return sum(_full(one) for one in attacks if not one.minimal_norm)


def _full(attack: Attack) -> int:
    if isinstance(attack, Ensemble | AutoAttack):
        return STANDARD // 2 if getattr(attack, "effort", "full") == "adaptive" else STANDARD
    return 3 * getattr(attack, "steps", RUN) * max(getattr(attack, "restarts", 1), 1)
