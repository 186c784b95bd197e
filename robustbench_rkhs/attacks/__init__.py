"""Attacks: images in, images out."""

from typing import Annotated

from robustbench_rkhs.attacks.alma import ALMA
from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.autoattack import AutoAttack
from robustbench_rkhs.attacks.base import Attack, Attacked
from robustbench_rkhs.attacks.ddn import DDN
from robustbench_rkhs.attacks.ensemble import Ensemble
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.fmn import FMN
from robustbench_rkhs.attacks.foolbox import FoolboxAttack
from robustbench_rkhs.attacks.foreign import foreign_attack
from robustbench_rkhs.attacks.pgd import PGD, PublishedPGD
from robustbench_rkhs.attacks.square.attack import Square
from robustbench_rkhs.attacks.superdeepfool import SuperDeepFool
from robustbench_rkhs.nodes.one_of import OneOf

AnyAttack = Annotated[
    PGD | PublishedPGD | APGD | FAB | Square | Ensemble | SuperDeepFool | DDN | FMN | ALMA | FoolboxAttack | AutoAttack | Attack,
    OneOf(Attack, "attacks", foreign_attack),
]
"""Any attack: ours by `name`, an instance of Attack, or your own as package.module:Name."""

__all__ = [
    "ALMA",
    "APGD",
    "DDN",
    "FAB",
    "FMN",
    "PGD",
    "AnyAttack",
    "Attack",
    "Attacked",
    "AutoAttack",
    "Ensemble",
    "FoolboxAttack",
    "PublishedPGD",
    "Square",
    "SuperDeepFool",
]
