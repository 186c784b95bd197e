"""Models frozen for evaluation: each layer in plain operations, with its weights computed once, and no access to its input."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.layers.lowered import lowered, lowers
from robustbench_rkhs.lipschitz.guard import foreign


@torch.no_grad()
def freeze(model: nn.Module) -> nn.Module:
    """A copy for evaluation with every layer in its `lowered` form; the model itself where no layer has one. It is `on_copies`.

    The many forward passes of an attack then cost as much as those of a plain network. Certificates use the model itself.
    """
    if not any(lowers(module) for module in model.modules()):
        return on_copies(model)
    return on_copies(_freeze(copy.deepcopy(model).eval()))


class OnCopies(nn.Module):
    """A model that gets a copy of its images, so that what it writes into them changes neither the caller's nor an attack's.

    Its parts have the names that they have in the model, which is held outside of them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.training = model.training
        self._held = (model,)
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers

    def train(self, mode: bool = True) -> "OnCopies":
        self._held[0].train(mode)
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self._held[0](x.clone())


def on_copies(model: nn.Module) -> nn.Module:
    """The same model on copies of its images; the model itself where all its code is known to leave them alone."""
    if isinstance(model, OnCopies) or getattr(type(model), "leaves_input", False):
        return model
    parts = list(model.modules())
    if any(getattr(part, "inplace", False) is True or (foreign(part) and not lowers(part)) for part in parts):
        return OnCopies(model)
    return model


def _freeze(module: nn.Module) -> nn.Module:
    """The lowered form of a layer, if it has one; for any other module, its children are replaced."""
    if lowers(module):
        return lowered(module).eval().requires_grad_(False)
    for name, child in list(module.named_children()):
        form = _freeze(child)
        if form is not child:
            setattr(module, name, form)
    return module
