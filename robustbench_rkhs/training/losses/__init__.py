"""Losses: loss(model, x, y) -> scalar."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.training.losses.cross_entropy import CrossEntropy
from robustbench_rkhs.training.losses.crown_ibp import CrownIBP
from robustbench_rkhs.training.losses.gloro import Gloro
from robustbench_rkhs.training.losses.hinge import Hinge
from robustbench_rkhs.training.losses.ibp import IBP
from robustbench_rkhs.training.losses.mma import MMA
from robustbench_rkhs.training.losses.mtl_ibp import MtlIbp
from robustbench_rkhs.training.losses.multi_margin import MultiMargin
from robustbench_rkhs.training.losses.radius import Radius
from robustbench_rkhs.training.losses.squared_error import SquaredError
from robustbench_rkhs.training.losses.trades import Trades

Loss = Annotated[
    CrossEntropy | SquaredError | Hinge | MultiMargin | Trades | MMA | IBP | CrownIBP | MtlIbp | Gloro | Radius,
    Field(discriminator="name"),
]
"""Any loss, chosen by `name`."""

__all__ = [
    "IBP",
    "MMA",
    "CrossEntropy",
    "CrownIBP",
    "Gloro",
    "Hinge",
    "Loss",
    "MtlIbp",
    "MultiMargin",
    "Radius",
    "SquaredError",
    "Trades",
]
