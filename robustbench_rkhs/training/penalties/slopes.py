"""Gradients with respect to images, zero where a model ignores them."""

import torch
from jaxtyping import Float
from torch import Tensor


def slope(
    value: Float[Tensor, ""], x: Float[Tensor, "batch *image"], *, keep: bool = False, graph: bool = False
) -> Float[Tensor, "batch *image"]:
    """d value / d x without weight gradients; `keep`: the graph is used again; `graph`: it can be differentiated itself."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, retain_graph=keep or graph, create_graph=graph, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient
