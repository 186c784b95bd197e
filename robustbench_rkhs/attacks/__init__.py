"""Attacks: images in, images out."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.attacks.autoattack import AutoAttack
from robustbench_rkhs.attacks.contract import Attack, Attacked
from robustbench_rkhs.attacks.foolbox import FoolboxAttack
from robustbench_rkhs.attacks.pgd import PGD, PublishedPGD
from robustbench_rkhs.attacks.square import Square

AnyAttack = Annotated[PGD | PublishedPGD | FoolboxAttack | AutoAttack | Square, Field(discriminator="name")]
"""Any attack, chosen by `name`."""

__all__ = ["PGD", "AnyAttack", "Attack", "Attacked", "AutoAttack", "FoolboxAttack", "PublishedPGD", "Square"]
