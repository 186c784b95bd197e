"""Losses: loss(model, x, y) -> scalar."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.losses.cross_entropy import CrossEntropy
from robustbench_rkhs.losses.squared_error import SquaredError

Loss = Annotated[CrossEntropy | SquaredError, Field(discriminator="name")]
"""Any loss, chosen by `name`."""

__all__ = ["CrossEntropy", "Loss", "SquaredError"]
