"""Penalties: penalty(model, x, y) -> scalar added to the loss."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.penalties.adversarial_perturbation import AdversarialPerturbation
from robustbench_rkhs.penalties.gradient import GradientPenalty
from robustbench_rkhs.penalties.loss_gradient import LossGradient
from robustbench_rkhs.penalties.spectral_norm import SpectralNorm
from robustbench_rkhs.penalties.virtual_adversarial import VirtualAdversarial

Penalty = Annotated[
    GradientPenalty | AdversarialPerturbation | LossGradient | SpectralNorm | VirtualAdversarial, Field(discriminator="name")
]
"""Any penalty, chosen by `name`."""

__all__ = ["AdversarialPerturbation", "GradientPenalty", "LossGradient", "Penalty", "SpectralNorm", "VirtualAdversarial"]
