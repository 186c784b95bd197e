"""Weights reshaped to matrices, as published norms and projections use them; no bound of the operator."""

from jaxtyping import Float
from torch import Tensor, nn


def weighted(model: nn.Module) -> list[nn.Module]:
    """Modules whose weight is a plain linear or convolutional parameter (parametrised weights are excluded)."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [module for module in model.modules() if isinstance(module, kinds) and "weight" in module._parameters]


def as_matrix(weight: Tensor) -> Float[Tensor, "rows columns"]:
    """The reshaped kernel as a view, in whatever memory format: the order of its columns does not change singular values."""
    if weight.dim() > 2 and not weight.is_contiguous():
        weight = weight.movedim(1, -1)
    return weight.view(len(weight), -1)  # a view or an error, never a copy
