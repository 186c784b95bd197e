"""Penalties: penalty(model, x, y) -> scalar added to the loss.

In your own training loop:

>>> import torch
>>> from robustbench_rkhs.training.penalties import GradientPenalty
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
>>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
>>> penalty = GradientPenalty(weight=0.01)
>>> loss = torch.nn.functional.cross_entropy(model(x), y) + penalty(model, x, y)
>>> loss.backward()
>>> model[1].weight.grad.shape
torch.Size([10, 64])

A penalty that needs the training images (`function_norm`) is prepared first: `penalty = penalty.prepare(model, split, seed)`. For
penalties with random numbers, a fourth argument, one integer per image that no other step uses, makes them repeatable. Your own is
a subclass of `PenaltyNode` with a `__call__`; its fields are its flags: `--penalties "[{name: mypenalties:Flat, weight: 0.1}]"`.
"""

from typing import Annotated

from robustbench_rkhs.nodes.one_of import OneOf
from robustbench_rkhs.training.penalties.adversarial_perturbation import AdversarialPerturbation
from robustbench_rkhs.training.penalties.base import PenaltyNode
from robustbench_rkhs.training.penalties.consistency import Consistency
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
    | Tangent
    | Consistency
    | PenaltyNode,
    OneOf(PenaltyNode, "penalties"),
]
"""Any penalty: ours by `name`, an instance of PenaltyNode, or your own as package.module:Name."""

__all__ = [
    "AdversarialPerturbation",
    "Consistency",
    "Curvature",
    "FunctionNorm",
    "GradientPenalty",
    "Jacobian",
    "LossGradient",
    "Penalty",
    "PenaltyNode",
    "SpectralNorm",
    "Stability",
    "Tangent",
    "VirtualAdversarial",
]
