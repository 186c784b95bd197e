"""Penalties: what is added to the loss, a scalar with a weight; one idea a file."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.penalties.curvature import Curvature
from robustbench_rkhs.penalties.deformation import Stability, Tangent
from robustbench_rkhs.penalties.function_norm import FunctionNorm
from robustbench_rkhs.penalties.gradient import GradientPenalty
from robustbench_rkhs.penalties.jacobian import Jacobian

Penalty = Annotated[
    GradientPenalty | Jacobian | Curvature | FunctionNorm | Stability | Tangent,
    Field(discriminator="name"),
]
"""Any penalty, chosen by `name`."""

__all__ = ["Curvature", "FunctionNorm", "GradientPenalty", "Jacobian", "Penalty", "Stability", "Tangent"]
