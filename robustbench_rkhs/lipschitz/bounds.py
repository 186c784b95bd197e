"""Lipschitz bounds of single layers: the type of a bound, the dispatch on layer type, and the rules of the simplest layers."""

import math
from functools import singledispatch
from typing import NamedTuple

import torch
from jaxtyping import Inexact
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import verified_norm
from robustbench_rkhs.lipschitz.verified_norm import UNIT as UNIT
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.modes import advice

SLACK = 1e-9
"""Relative allowance for the rounding of a matrix whose entries were computed in float64; orders of magnitude more than
needed."""
ROUND = 1e-15
"""Relative slack of a few float64 operations (four units in the last place)."""
TINY = 1e-290
"""The smallest nonzero bound, so that underflow cannot turn a small slope into zero."""


class Uncertifiable(UserError):
    """Raised where nothing is proved about a module. Names the module and the reason."""


class Bound(NamedTuple):
    """A proven upper bound of a module's Lipschitz constant, and the shape it maps to."""

    value: float
    """Output l2 per unit of input l2."""
    shape: tuple[int, ...]
    """Output shape without the batch dimension."""
    method: str = ""
    """The proof that gave the smallest value: `dense`, `torus`, `schur`, `reshaped`, `slope`; empty if its rule has only one."""


@singledispatch
def rule(module: nn.Module, shape: tuple[int, ...]) -> Bound:
    """The bound of one layer by type; a layer registers its rule in its own file: `@rule.register`.

    A rule is only called through `upper`, which passes it a float64 copy on the CPU without hooks or overridden
    methods. It reads the current weights, rounds upwards, and raises Uncertifiable(why) where it has no proof.
    """
    raise Uncertifiable("no rule for this type of layer")


@singledispatch
def affine(module: nn.Module) -> bool:
    """True where the layer maps each image by x -> M x + b, so that consecutive ones merge into one matrix."""
    return False


def spectral(matrices: Inexact[Tensor, "*batch rows columns"], slack: float = SLACK) -> float:
    """Proven upper bound of the largest l2 operator norm of a batch of finite float64 or complex128 matrices.

    `verified_norm.norm`: guessed by an eigenvalue solver, proved by Cholesky factorisations, in the rounding analysis of
    `verified_norm.proves`. Slack: an additional relative allowance for the rounding of computed entries; zero for
    weights as they are. Cost: a Gram product and a factorisation per matrix, and the eigenvalues of a few.
    """
    value = verified_norm.norm(matrices)
    return upwards(value, max(slack, ROUND)) if value else 0.0


def upwards(value: float, slack: float = ROUND) -> float:
    """The value of a nonzero bound, rounded up."""
    return max(value * (1 + slack), TINY)


def product(values: list[float]) -> float:
    """Product of bounds, rounded up: zero only where one is exactly zero, infinite where it overflows."""
    if any(value == 0 for value in values):
        return 0.0
    total = 1.0
    for value in values:
        total = value * total if value == 1 else upwards(value * total)
    return total


def weights(tensor: Tensor, name: str) -> Tensor:
    """The current value of the tensor, in float64 on the CPU. Raises Uncertifiable where it is not real and finite."""
    if not tensor.is_floating_point():
        raise Uncertifiable(f"expected a real floating-point {name}, found {tensor.dtype}")
    values = tensor.detach().to("cpu", torch.float64)
    if not values.isfinite().all():
        raise Uncertifiable(f"expected a finite {name}, found NaN or infinity")
    return values


@rule.register
def _(module: nn.Linear, shape: tuple[int, ...]) -> Bound:
    weight = weights(module.weight, "weight")
    if module.bias is not None:
        weights(module.bias, "bias")
    if not shape or shape[-1] != weight.shape[1]:
        raise Uncertifiable(f"expected {weight.shape[1]} features, found an input of shape {shape}")
    return Bound(spectral(weight, 0.0), (*shape[:-1], weight.shape[0]), "dense")


def steepest(slope: float, shape: tuple[int, ...]) -> Bound:
    """The bound of an elementwise layer whose slope is at most 1 on one side and `slope` on the other."""
    if not math.isfinite(slope):
        raise Uncertifiable(f"expected a finite slope, found {slope}")
    return Bound(max(1.0, abs(slope)), shape, "slope")


@rule.register(nn.ReLU)
@rule.register(nn.Tanh)
@rule.register(nn.Identity)
def _(module: nn.Module, shape: tuple[int, ...]) -> Bound:
    return Bound(1.0, shape)


@rule.register
def _(module: nn.Sigmoid, shape: tuple[int, ...]) -> Bound:
    return Bound(0.25, shape, "slope")


@rule.register
def _(module: nn.LeakyReLU, shape: tuple[int, ...]) -> Bound:
    return steepest(module.negative_slope, shape)


@rule.register
def _(module: nn.ELU, shape: tuple[int, ...]) -> Bound:
    return steepest(module.alpha, shape)


@rule.register(nn.Dropout)
@rule.register(nn.Dropout2d)
def _(module: nn.Module, shape: tuple[int, ...]) -> Bound:
    if module.training:
        raise Uncertifiable(f"it is random in training mode: {advice(module)}")
    return Bound(1.0, shape)


@rule.register
def _(module: nn.Flatten, shape: tuple[int, ...]) -> Bound:
    dimensions = len(shape) + 1
    first, last = (dim + dimensions if dim < 0 else dim for dim in (module.start_dim, module.end_dim))
    if not 1 <= first <= last < dimensions:
        raise Uncertifiable(f"no rule for flattening dimensions {module.start_dim} to {module.end_dim} of (batch, *{shape})")
    return Bound(1.0, (*shape[: first - 1], math.prod(shape[first - 1 : last]), *shape[last:]))


for _kind in (nn.Linear, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten):
    affine.register(_kind, lambda module: True)
