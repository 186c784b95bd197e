"""Interval and linear bounds of the linear maps of traced code and of linear layers beside convolutions, and of curves."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.traced_maps import Along, Pick, along
from robustbench_rkhs.lipschitz.linear_maps import BORDERS, jumping
from robustbench_rkhs.relaxations.curves import CURVES, interval_of_curve, lines_of_curve
from robustbench_rkhs.relaxations.interval import NoRule, Step, through
from robustbench_rkhs.relaxations.linear_bounds import Lines, adjoint, back, bent
from robustbench_rkhs.relaxations.region import Region, wide
from robustbench_rkhs.relaxations.rounding import magnitude

WEIGHTLESS: tuple[type[Any], ...] = (Pick, nn.Upsample, nn.Unflatten, nn.ChannelShuffle, *BORDERS)
"""Linear maps without parameters, whose entries are not negative."""


def _weightless(module: nn.Module, like: Tensor) -> nn.Module:
    if isinstance(module, nn.Upsample) and module.mode == "bicubic":
        raise NoRule("no bounds for mode 'bicubic', whose weights are of both signs")
    if isinstance(module, nn.Upsample) and (why := jumping(module, tuple(like.shape[1:]))):
        raise NoRule(why)
    return module


def _through(module: nn.Module, region: Region) -> Region:
    """No row has two entries of one input, but two rows may share one: then an ellipsoid becomes its box."""
    each = isinstance(module, nn.Unflatten | nn.ChannelShuffle) or (isinstance(module, Pick) and module.repeats <= 1)
    return Region(_weightless(module, region.center)(region.center), module(region.radius), region.round and each)


def _back(module: nn.Module, step: Step, rows: Lines) -> Lines:
    flat = rows.slopes.flatten(0, 1)
    slopes = adjoint(module, (len(flat), *step.before.center.shape[1:]), flat)
    return Lines(slopes.unflatten(0, rows.slopes.shape[:2]), rows.offsets)


def _magnitude(module: nn.Module, size: Tensor) -> Tensor:
    result: Tensor = module(size)
    return result


for _kind in WEIGHTLESS:
    through.register(_kind, _through)
    back.register(_kind, _back)
    magnitude.register(_kind, _magnitude)


@through.register
def _(module: Along, region: Region) -> Region:
    weight = module.weight.to(region.center)
    return Region(along(region.center, module.dim, weight), along(region.radius, module.dim, weight.abs()))


@back.register
def _(module: Along, step: Step, rows: Lines) -> Lines:
    return Lines(along(rows.slopes, module.dim + 1, module.weight.to(rows.slopes).T), rows.offsets)


@magnitude.register
def _(module: Along, size: Tensor) -> Tensor:
    return along(size, module.dim, module.weight.abs())


def _transposed(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    options = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    ways = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    result: Tensor = ways[len(module.kernel_size) - 1](x, weight, bias, *options)
    return result


@through.register(nn.ConvTranspose1d)
@through.register(nn.ConvTranspose2d)
@through.register(nn.ConvTranspose3d)
def _(module: Any, region: Region) -> Region:
    weight, bias = wide(module.weight), None if module.bias is None else wide(module.bias)
    return Region(_transposed(module, region.center, weight, bias), _transposed(module, region.radius, weight.abs(), None))


@through.register
def _(module: nn.Conv3d, region: Region) -> Region:
    weight, bias = wide(module.weight), None if module.bias is None else wide(module.bias)
    center = module._conv_forward(region.center, weight, bias)
    return Region(center, module._conv_forward(region.radius, weight.abs(), None))


def _by_adjoint(linear: Callable[[Tensor], Tensor], module: nn.Module, step: Step, rows: Lines) -> Lines:
    flat, bias = rows.slopes.flatten(0, 1), module.bias
    slopes = adjoint(linear, (len(flat), *step.before.center.shape[1:]), flat)
    offsets = rows.offsets
    if bias is not None:
        offsets = offsets + (rows.slopes.flatten(3).sum(3) * wide(bias)).sum(2)  # type: ignore[arg-type]
    return Lines(slopes.unflatten(0, rows.slopes.shape[:2]), offsets)


@back.register(nn.ConvTranspose1d)
@back.register(nn.ConvTranspose2d)
@back.register(nn.ConvTranspose3d)
def _(module: Any, step: Step, rows: Lines) -> Lines:
    return _by_adjoint(lambda x: _transposed(module, x, wide(module.weight), None), module, step, rows)


@back.register
def _(module: nn.Conv3d, step: Step, rows: Lines) -> Lines:
    return _by_adjoint(lambda x: module._conv_forward(x, wide(module.weight), None), module, step, rows)


@magnitude.register(nn.ConvTranspose1d)
@magnitude.register(nn.ConvTranspose2d)
@magnitude.register(nn.ConvTranspose3d)
def _(module: Any, size: Tensor) -> Tensor:
    return _transposed(module, size, module.weight.abs(), None if module.bias is None else module.bias.abs())


@magnitude.register
def _(module: nn.Conv3d, size: Tensor) -> Tensor:
    result: Tensor = module._conv_forward(size, module.weight.abs(), None if module.bias is None else module.bias.abs())
    return result


def _curve_back(module: nn.Module, step: Step, rows: Lines) -> Lines:
    slopes, offsets = bent(rows.slopes, lines_of_curve(module, step.before))
    return Lines(slopes, rows.offsets + offsets)


def _curve_magnitude(module: nn.Module, size: Tensor) -> Tensor:
    return 8 * size + 4


for _kind in CURVES:
    through.register(_kind, interval_of_curve)
    back.register(_kind, _curve_back)
    magnitude.register(_kind, _curve_magnitude)
