"""Penalties: penalty(model, x, y) -> scalar added to the loss."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.training.penalties.adversarial_perturbation import AdversarialPerturbation
from robustbench_rkhs.training.penalties.curvature import Curvature
from robustbench_rkhs.training.penalties.deformation import Stability, Tangent
from robustbench_rkhs.training.penalties.function_norm import FunctionNorm
from robustbench_rkhs.training.penalties.gradient import GradientPenalty
from robustbench_rkhs.training.penalties.jacobian import Jacobian
from robustbench_rkhs.training.penalties.loss_gradient import LossGradient
from robustbench_rkhs.training.penalties.spectral_norm import SpectralNorm
from robustbench_rkhs.training.penalties.virtual_adversarial import VirtualAdversarial

Penalty = Annotated[
    GradientPenalty
    | AdversarialPerturbation
    | LossGradient
    | SpectralNorm
    | VirtualAdversarial
    | Jacobian
    | Curvature
    | FunctionNorm
    | Stability
    | Tangent,
    Field(discriminator="name"),
]
"""Any penalty, chosen by `name`."""

__all__ = [
    "AdversarialPerturbation",
    "Curvature",
    "FunctionNorm",
    "GradientPenalty",
    "Jacobian",
    "LossGradient",
    "Penalty",
    "SpectralNorm",
    "Stability",
    "Tangent",
    "VirtualAdversarial",
]
