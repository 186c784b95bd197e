"""Bounds on the float64 rounding errors of layers."""

import math
from functools import singledispatch

import torch
from torch import nn

from robustbench_rkhs.lipschitz.bounds import UNIT
from robustbench_rkhs.lipschitz.euclidean import length


@singledispatch
def fan(module: nn.Module, inputs: int, outputs: int) -> tuple[int, int]:
    """The most terms in the sum of an output, and the most outputs that an input enters; without a rule: all."""
    return inputs, outputs


_POINTWISE = nn.ReLU, nn.Tanh, nn.Identity, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Dropout, nn.Dropout2d, nn.Flatten
for _kind in (*_POINTWISE, nn.MaxPool2d):
    fan.register(_kind, lambda module, inputs, outputs: (1, 1))


@fan.register
def _(module: nn.Linear, inputs: int, outputs: int) -> tuple[int, int]:
    return module.weight.shape[1], module.weight.shape[0]


@fan.register
def _(module: nn.Conv2d, inputs: int, outputs: int) -> tuple[int, int]:
    taps = math.prod(module.weight.shape[2:])
    copies = 9 if module.padding_mode == "circular" else 1  # a pixel occurs up to three times along each axis
    return taps * module.weight.shape[1], copies * taps * module.weight.shape[0] // module.groups


@singledispatch
def constants(module: nn.Module, shape: tuple[int, ...]) -> float:
    """The l2 size of the constants that a layer adds: its output at zero, unless its type registers another rule.

    A layer with a bias before its activation must: a bias that the activation cuts off at zero is still added and rounded.
    """
    return length(module(torch.zeros(1, *shape, dtype=torch.float64)))


@constants.register
def _(module: nn.ELU, shape: tuple[int, ...]) -> float:
    """The rounding of exp(x) - 1 is relative to 1."""
    return abs(module.alpha) * math.sqrt(math.prod(shape))


def relative_rounding(module: nn.Module, inputs: int, outputs: int) -> float:
    r"""Error of a product with the layer's matrix M or its adjoint, in l2, relative to (bound of ||M||) times the
    vector.

    .. math:: 4\, (\max(r, c) + 16)\, 2^{-53}\, (r c)^{1/4}

    Sums of n terms err by at most n units of roundoff (and a few) of the sum of absolute values. With r nonzeros per row
    and c a column, || |M| ||_2 <= sqrt(|| M ||_1 ||M||_inf) <= sqrt(sqrt(c) ||M||_2 sqrt(r) ||M||_2). An activation
    errs by a few units.
    """
    rows, columns = fan(module, inputs, outputs)
    return float(4 * UNIT * (max(rows, columns) + 16) * (rows * columns) ** 0.25)
