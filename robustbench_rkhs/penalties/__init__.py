"""Penalties: penalty(model, x, y) -> scalar added to the loss."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.penalties.deformation import Stability, Tangent
from robustbench_rkhs.penalties.gradient import GradientPenalty

Penalty = Annotated[GradientPenalty | Stability | Tangent, Field(discriminator="name")]
"""Any penalty, chosen by `name`."""

__all__ = ["GradientPenalty", "Penalty", "Stability", "Tangent"]
