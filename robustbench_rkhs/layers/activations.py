"""Activations that keep the norm of gradients."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, Uncertifiable, fan, rule
from robustbench_rkhs.node import UserError


class MaxMin(nn.Module):
    r"""The larger and the smaller of each pair of channels (or features): a permutation wherever it is smooth.

    .. math:: (a, b) \mapsto (\max(a, b), \min(a, b)), \qquad L = 1

    The first half of dimension 1 pairs with the second half. Sorting contracts: |sort u - sort v| <= |u - v|.
    Raises UserError at an odd number of channels. Cost: one comparison a pair. Source: Anil et al., ICML 2019.
    """

    def forward(self, x: Float[Tensor, "batch channel *image"]) -> Float[Tensor, "batch channel *image"]:
        if x.dim() < 2 or x.shape[1] % 2:
            raise UserError(f"MaxMin: expected an even number of channels, found an input of shape {tuple(x.shape)}")
        one, other = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(one, other), torch.minimum(one, other)], dim=1)


@rule.register
def _(module: MaxMin, shape: tuple[int, ...]) -> Bound:
    if not shape or shape[0] % 2:
        raise Uncertifiable(f"expected an even number of channels, found an input of shape {shape}")
    return Bound(1.0, shape)


fan.register(MaxMin, lambda module, inputs, outputs: (1, 1))
