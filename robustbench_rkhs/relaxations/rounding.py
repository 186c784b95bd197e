"""Bounds on the float64 rounding error of each layer, per value."""

import math
from functools import singledispatch

import torch
from torch import Tensor, nn

from robustbench_rkhs.layers import (
    FirstFeatures,
    GroupSort,
    LearnableScale,
    MaxMin,
    Normalize,
    PadChannels,
    Scale,
    ScaledAveragePool,
    SpaceToDepth,
)
from robustbench_rkhs.layers.traced_maps import Diagonal
from robustbench_rkhs.lipschitz import fan
from robustbench_rkhs.relaxations.curves import CURVES
from robustbench_rkhs.relaxations.expansion import Exchange, enlarged
from robustbench_rkhs.relaxations.interval import Step, diagonal, forked
from robustbench_rkhs.relaxations.region import Region

UNIT = 2.0**-53
"""Unit roundoff of float64."""
SMOOTH = 256
"""Assumed largest error of exp, tanh and sigmoid, in units of roundoff, relative to size plus one."""
LEAST = 1e-290
"""Added to every radius, against underflow: a product that underflows loses at most 2^-1022."""
MOVING = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.ZeroPad2d, nn.PixelUnshuffle, nn.PixelShuffle),
    *(SpaceToDepth, PadChannels, FirstFeatures),
)
"""Layers that move, drop or pad values."""


def most(region: Region) -> Tensor:
    """Bound on the absolute values in a region."""
    return region.center.abs() + region.radius


def rounded(step: Step, after: Region) -> tuple[Step, Region]:
    r"""The step with its `size` and `unit`, and its output region widened by their product.

    A sum of n products in any order errs by at most gamma_n sum |w| |u|, gamma_n = n u / (1 - n u), u = 2^-53. `size` bounds
    that sum with |c| for the constant, as the layer's absolute weights times the absolute input values; it is itself
    computed within a relative gamma_n. `unit` is 4 n u, four times what is needed: n counts terms forward, terms backward
    (nine times, for borders that are read again) and outputs, over which the offsets are summed. LEAST covers what underflows in
    the size; what underflows in its product with a row is covered in `chain_back`. Layers that only move values round nothing.
    """
    inputs, outputs = step.before.center[0].numel(), after.center[0].numel()
    if forked(step.module):
        parts = len(step.branches)
        return step, after._replace(radius=after.radius + 8 * parts * UNIT * most(after) + LEAST)
    if isinstance(step.module, MOVING):
        return step._replace(size=torch.zeros_like(after.center), unit=0.0), after
    smooth = isinstance(step.module, (nn.Tanh, nn.Sigmoid, nn.ELU, *CURVES))
    unit = 4 * UNIT * (9 * max(fan(step.module, inputs, outputs)) + outputs + (SMOOTH if smooth else 64))
    size = magnitude(step.module, most(step.before)) + LEAST
    return step._replace(size=size, unit=unit), widened(after, unit * size)


def widened(region: Region, by: Tensor) -> Region:
    """The region widened so that it contains every point of it moved by at most `by`.

    An ellipsoid grows as a whole: ||z / r'|| <= ||z / r|| / (1 + k) + sqrt(d) max(by / r) / (1 + k) <= 1.
    """
    if region.round:
        if not by.any():
            return region
        dimensions = region.center[0].numel()
        ratio = (by / region.radius).flatten(1).amax(1)
        if bool((ratio * dimensions < 1e-3).all()):
            factor = 1 + 2 * math.sqrt(dimensions) * ratio
            return region._replace(radius=region.radius * factor.view(-1, *[1] * (region.center.dim() - 1)))
    return Region(region.center, region.radius + by + LEAST)


@singledispatch
def magnitude(module: nn.Module, size: Tensor) -> Tensor:
    """|W| size + |c|; for functions between lines, the sizes of these lines."""
    raise NotImplementedError(type(module).__name__)


@magnitude.register(ScaledAveragePool)
@magnitude.register(nn.AvgPool1d)
@magnitude.register(nn.AdaptiveAvgPool1d)
@magnitude.register(nn.AvgPool2d)
@magnitude.register(nn.AdaptiveAvgPool2d)
def _(module: nn.Module, size: Tensor) -> Tensor:
    result: Tensor = module(size)
    return result


@magnitude.register
def _(module: nn.MaxPool2d, size: Tensor) -> Tensor:
    result: Tensor = 4 * module(size)
    return result


@magnitude.register(Normalize)
@magnitude.register(Scale)
@magnitude.register(LearnableScale)
@magnitude.register(Diagonal)
@magnitude.register(nn.BatchNorm1d)
@magnitude.register(nn.BatchNorm2d)
def _(module: nn.Module, size: Tensor) -> Tensor:
    scale, shift = diagonal(module, size)
    shape = (-1, *[1] * (size.dim() - 2))
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
        shift = (module.running_mean.view(shape) * scale).abs()
        if module.bias is not None:
            shift = shift + module.bias.view(shape).abs()
    return scale.abs() * size + shift.abs()


@magnitude.register
def _(module: nn.Linear, size: Tensor) -> Tensor:
    return nn.functional.linear(size, module.weight.abs(), _constants(module))


@magnitude.register(nn.Conv1d)
@magnitude.register(nn.Conv2d)
def _(module: nn.Conv1d | nn.Conv2d, size: Tensor) -> Tensor:
    result: Tensor = module._conv_forward(size, enlarged(module), _constants(module))
    return result


@magnitude.register(nn.ReLU)
@magnitude.register(nn.LeakyReLU)
def _(module: nn.Module, size: Tensor) -> Tensor:
    return 4 * size


@magnitude.register(nn.Tanh)
@magnitude.register(nn.Sigmoid)
@magnitude.register(nn.ELU)
def _(module: nn.Module, size: Tensor) -> Tensor:
    return 4 * size + 4


@magnitude.register
def _(module: MaxMin, size: Tensor) -> Tensor:
    one, other = size.chunk(2, module.dim)
    return 4 * torch.cat([one + other, one + other], module.dim)


@magnitude.register
def _(module: Exchange, size: Tensor) -> Tensor:
    both = size[:, module.first] + size[:, module.second]
    return 4 * size.index_copy(1, module.first, both).index_copy(1, module.second, both)


@magnitude.register
def _(module: GroupSort, size: Tensor) -> Tensor:
    pairs = size.unflatten(1, (-1, 2))
    result: Tensor = 4 * pairs.sum(2, keepdim=True).expand_as(pairs).flatten(1, 2)
    return result


def _constants(module: nn.Linear | nn.Conv1d | nn.Conv2d) -> Tensor | None:
    """Absolute values of the bias; for a layer made of several, the sizes of its constants before they were summed."""
    if module.bias is None:
        return None
    sizes = getattr(module, "sizes", None)
    return module.bias.abs() if sizes is None else torch.maximum(module.bias.abs(), sizes.view_as(module.bias))
