"""Losses: loss(model, x, y) -> scalar."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.losses.cross_entropy import CrossEntropy
from robustbench_rkhs.losses.crown_ibp import CrownIBP
from robustbench_rkhs.losses.gloro import Gloro
from robustbench_rkhs.losses.hinge import Hinge
from robustbench_rkhs.losses.ibp import IBP
from robustbench_rkhs.losses.mma import MMA
from robustbench_rkhs.losses.mtl_ibp import MtlIbp
from robustbench_rkhs.losses.multi_margin import MultiMargin
from robustbench_rkhs.losses.squared_error import SquaredError
from robustbench_rkhs.losses.trades import Trades

Loss = Annotated[
    CrossEntropy | SquaredError | Hinge | MultiMargin | Trades | MMA | IBP | CrownIBP | MtlIbp | Gloro, Field(discriminator="name")
]
"""Any loss, chosen by `name`."""

__all__ = ["IBP", "MMA", "CrossEntropy", "CrownIBP", "Gloro", "Hinge", "Loss", "MtlIbp", "MultiMargin", "SquaredError", "Trades"]
