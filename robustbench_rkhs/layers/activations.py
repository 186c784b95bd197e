"""Gradient-norm-preserving activations: MaxMin and GroupSort."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, Uncertifiable, fan, rule
from robustbench_rkhs.nodes.node import UserError

Activation = Literal["relu", "maxmin", "none"]
"""The activation that a layer applies to its output."""


class MaxMin(nn.Module):
    r"""The larger and the smaller of each pair of channels (or features): locally a permutation.

    .. math:: (a, b) \mapsto (\max(a, b), \min(a, b)), \qquad L = 1

    The first half of dimension `dim` (1: channels) pairs with the second half. Sorting contracts: |sort u - sort v| <= |u - v|.
    Raises UserError at an odd number of channels. Cost: one comparison per pair. Source: Anil et al., ICML 2019.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        if dim not in (1, -1):
            raise UserError(f"MaxMin: expected dim 1 (channels) or -1 (the last), found {dim}")
        self.dim = dim

    def forward(self, x: Float[Tensor, "batch channel *image"]) -> Float[Tensor, "batch channel *image"]:
        if x.dim() < 2 or x.shape[self.dim] % 2:
            raise UserError(f"MaxMin: expected an even number of channels, found an input of shape {tuple(x.shape)}")
        return _maxmin(x, self.dim)


class GroupSort(nn.Module):
    r"""Each group of neighbouring channels (or features) in descending order: locally a permutation.

    .. math:: y_{[g]} = \mathrm{sort}(x_{[g]}), \qquad L = 1

    as |sort u - sort v| <= |u - v| (the rearrangement inequality).
    Raises UserError where the group does not divide the channels. Cost: a sort. Source: Anil et al., ICML 2019.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        if group < 1:
            raise UserError(f"GroupSort: expected groups of at least 1 channel, found {group}")
        self.group = group

    def forward(self, x: Float[Tensor, "batch channel *image"]) -> Float[Tensor, "batch channel *image"]:
        if x.dim() < 2 or x.shape[1] % self.group:
            raise UserError(f"GroupSort: expected channels in groups of {self.group}, found an input of shape {tuple(x.shape)}")
        result: Tensor = x.unflatten(1, (-1, self.group)).sort(dim=2, descending=True).values.flatten(1, 2)
        return result

    def extra_repr(self) -> str:
        return f"group={self.group}"


def even(name: str, activation: str, outputs: int) -> None:
    """Raises UserError where a layer's activation is unknown or cannot pair its outputs."""
    if activation not in ("relu", "maxmin", "none"):
        raise UserError(f"{name}: expected activation 'relu', 'maxmin' or 'none', found {activation!r}")
    if activation == "maxmin" and outputs % 2:
        raise UserError(f"{name}: expected an even number of outputs (MaxMin pairs them), found {outputs}")


def activated(x: Float[Tensor, "*batch"], activation: Activation, dim: int = 1) -> Float[Tensor, "*batch"]:
    """The activation of a layer, with slopes at most one; `dim`: its channels."""
    match activation:
        case "relu":
            return x.relu()
        case "maxmin":
            return _maxmin(x, dim)
        case "none":
            return x


def activation_layers(activation: Activation, dim: int = 1) -> list[nn.Module]:
    """`activated` as layers: none or one."""
    match activation:
        case "relu":
            return [nn.ReLU()]
        case "maxmin":
            return [MaxMin(dim)]
        case "none":
            return []


def _maxmin(x: Float[Tensor, "*batch"], dim: int) -> Float[Tensor, "*batch"]:
    one, other = x.chunk(2, dim=dim)
    return torch.cat([torch.maximum(one, other), torch.minimum(one, other)], dim=dim)


@rule.register
def _(module: MaxMin, shape: tuple[int, ...]) -> Bound:
    if not shape or shape[module.dim - 1 if module.dim > 0 else -1] % 2:
        raise Uncertifiable(f"expected an even number of channels, found an input of shape {shape}")
    return Bound(1.0, shape)


@rule.register
def _(module: GroupSort, shape: tuple[int, ...]) -> Bound:
    if not shape or shape[0] % module.group:
        raise Uncertifiable(f"expected channels in groups of {module.group}, found an input of shape {shape}")
    return Bound(1.0, shape)


for _kind in (MaxMin, GroupSort):
    fan.register(_kind, lambda module, inputs, outputs: (1, 1))
