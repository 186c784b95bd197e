"""Attacks: images in, images out."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.attacks.autoattack import AutoAttack
from robustbench_rkhs.attacks.contract import Attack, Attacked
from robustbench_rkhs.attacks.ddn import DDN
from robustbench_rkhs.attacks.fmn import FMN
from robustbench_rkhs.attacks.foolbox import FoolboxAttack
from robustbench_rkhs.attacks.pgd import PGD, PublishedPGD
from robustbench_rkhs.attacks.superdeepfool import SuperDeepFool

AnyAttack = Annotated[PGD | PublishedPGD | SuperDeepFool | DDN | FMN | FoolboxAttack | AutoAttack, Field(discriminator="name")]
"""Any attack, chosen by `name`."""

__all__ = [
    "DDN",
    "FMN",
    "PGD",
    "AnyAttack",
    "Attack",
    "Attacked",
    "AutoAttack",
    "FoolboxAttack",
    "PublishedPGD",
    "SuperDeepFool",
]
