"""Models frozen for evaluation: each layer in plain operations, with its weights computed once."""

import copy

import torch
from torch import nn

from robustbench_rkhs.layers.lowered import lowered, lowers


@torch.no_grad()
def freeze(model: nn.Module) -> nn.Module:
    """A copy for evaluation with every layer in its `lowered` form; the model itself where no layer has one.

    The many forward passes of an attack then cost as much as those of a plain network. Certificates use the model itself.
    """
    if not any(lowers(module) for module in model.modules()):
        return model
    return _freeze(copy.deepcopy(model).eval())


def _freeze(module: nn.Module) -> nn.Module:
    """The lowered form of a layer, if it has one; for any other module, its children are replaced."""
    if lowers(module):
        return lowered(module).eval().requires_grad_(False)
    for name, child in list(module.named_children()):
        form = _freeze(child)
        if form is not child:
            setattr(module, name, form)
    return module
