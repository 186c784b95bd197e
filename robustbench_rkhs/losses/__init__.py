"""Losses: loss(model, x, y) -> scalar."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.losses.cross_entropy import CrossEntropy

Loss = Annotated[CrossEntropy, Field()]
"""Any loss, chosen by `name`."""

__all__ = ["CrossEntropy", "Loss"]
