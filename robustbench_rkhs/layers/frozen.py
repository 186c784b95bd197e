"""Models for evaluation: what a layer works out from its weights is worked out once."""

import copy

import torch
from torch import nn


@torch.no_grad()
def freeze(model: nn.Module) -> nn.Module:
    """A copy for evaluation, in which each layer that has a `frozen` twin is replaced by it; the model itself where none has.

    Thousands of forward passes of an attack then cost what a plain network's do. Certificates look at the model itself.
    """
    if not any(hasattr(module, "frozen") for module in model.modules()):
        return model
    twin = copy.deepcopy(model).eval()
    return _settle(twin) or twin


def _settle(module: nn.Module) -> nn.Module | None:
    """The twin of a layer that has one; of any other the children are replaced."""
    if callable(make := getattr(module, "frozen", None)):
        twin: nn.Module = make()
        return twin.eval()
    for name, child in list(module.named_children()):
        settled_child = _settle(child)
        if settled_child is not None:
            setattr(module, name, settled_child)
    return None
