"""Attacks: images in, images out."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.attacks.autoattack import AutoAttack
from robustbench_rkhs.attacks.contract import Attack, Attacked
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.foolbox import FoolboxAttack
from robustbench_rkhs.attacks.pgd import PGD, PublishedPGD

AnyAttack = Annotated[PGD | PublishedPGD | FoolboxAttack | AutoAttack | FAB, Field(discriminator="name")]
"""Any attack, chosen by `name`."""

__all__ = ["FAB", "PGD", "AnyAttack", "Attack", "Attacked", "AutoAttack", "FoolboxAttack", "PublishedPGD"]
