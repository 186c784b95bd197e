"""The default attacks of an evaluation, by effort."""

from robustbench_rkhs.attacks.base import Attack
from robustbench_rkhs.attacks.ddn import DDN
from robustbench_rkhs.attacks.ensemble import Ensemble
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.fmn import FMN
from robustbench_rkhs.attacks.superdeepfool import SuperDeepFool
from robustbench_rkhs.nodes.threat_model import Effort, Norm

STARTS = 5
"""Starts of DDN and FMN: the nearest boundary is not always one of the three nearest by linearisation."""


def protocol_of(effort: Effort, norm: Norm) -> tuple[Attack, ...]:
    """The attacks of an effort: cheap minimal-norm attacks first, whose upper bounds leave few runs to the last one.

    quick: SuperDeepFool, DDN (linf: FMN) and FAB towards three classes, with random starts in the whole box for what these leave;
    no fixed budget, so each image is attacked once.
    standard: SuperDeepFool and DDN (linf: FMN), then the full ensemble at an image's largest open eps.
    adaptive: the same, with the ensemble that skips attacks which broke nothing on a pilot.
    """
    near = (SuperDeepFool(norm=norm), DDN(norm=norm, starts=STARTS) if norm == "l2" else FMN(norm=norm, starts=STARTS))
    if effort == "quick":
        return (*near, FAB(norm=norm, targets=3, closer=0))
    return (*near, Ensemble(norm=norm, effort="adaptive" if effort == "adaptive" else "full"))
