"""Export of image operations: convolutions, Fourier-domain maps and pools."""

import math
from typing import Any

from torch import Tensor, nn

from robustbench_rkhs.bounds import Step
from robustbench_rkhs.layers import ScaledAveragePool, SpaceToDepth
from robustbench_rkhs.layers.borders import Convolution, ends
from robustbench_rkhs.layers.maps import FourierAffine
from robustbench_rkhs.layers.reflection import Reflected
from robustbench_rkhs.layers.sandwich_conv import FourierSandwich
from robustbench_rkhs.lipschitz.convolution import pair
from robustbench_rkhs.lipschitz.sequences import one
from robustbench_rkhs.proofs.layers_written import Plain, Shape, biased, written


def _convolution(
    shape: Shape,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: list[tuple[int, int]],
    circular: bool,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Plain:
    settings = _settings(stride, padding, circular, dilation, groups)
    return Plain("convolution", shape, settings, biased(bias, weight=weight))


def _settings(
    stride: tuple[int, int], padding: list[tuple[int, int]], circular: bool, dilation: tuple[int, int] = (1, 1), groups: int = 1
) -> dict[str, Any]:
    sides = [list(side) for side in padding]
    return {"stride": list(stride), "padding": sides, "dilation": list(dilation), "groups": groups, "circular": circular}


@written.register
def _(module: nn.Conv2d, step: Step) -> list[Plain]:
    stride, dilation = pair(module.stride), pair(module.dilation)
    circular = module.padding_mode == "circular"
    if circular or module.padding == "same":
        left, right, top, bottom = module._reversed_padding_repeated_twice
        padding = [(top, bottom), (left, right)]
    elif isinstance(module.padding, str):
        padding = [(0, 0), (0, 0)]
    else:
        padding = [(side, side) for side in pair(module.padding)]
    return [_convolution(step.bound.shape, module.weight, module.bias, stride, padding, circular, dilation, module.groups)]


@written.register
def _(module: nn.Conv1d, step: Step) -> list[Plain]:
    """Exported as a convolution of images of height one."""
    circular = module.padding_mode == "circular"
    if circular or module.padding == "same":
        before, after = module._reversed_padding_repeated_twice
    else:
        before = after = 0 if isinstance(module.padding, str) else one(module.padding)
    stride, dilation = (1, one(module.stride)), (1, one(module.dilation))
    shape, weight, padding = step.bound.shape, module.weight[:, :, None], [(0, 0), (before, after)]
    return [_convolution(shape, weight, module.bias, stride, padding, circular, dilation, module.groups)]


@written.register
def _(module: Convolution, step: Step) -> list[Plain]:
    circular = module.padding_mode == "circular"
    both, stride = [ends(module.weight.shape[-1])] * 2, (module.stride, module.stride)
    before = _divisible(step.inputs, module.stride) if circular else []
    return [*before, _convolution(step.bound.shape, module.weight, module.bias, stride, both, circular)]


def _divisible(shape: Shape, by: int) -> list[Plain]:
    """Zero padding at the image's end, up to the next multiples of `by`."""
    channels, *sides = shape
    wide = (channels, *(-(-side // by) * by for side in sides))
    return [] if wide == tuple(shape) else [Plain("fit", wide, bound=1.0)]


def _folded(shape: Shape, by: int) -> list[Plain]:
    channels, rows, columns = shape[0] * by**2, -(-shape[1] // by), -(-shape[2] // by)
    return [*_divisible(shape, by), *([] if by == 1 else [Plain("unshuffle", (channels, rows, columns), {"block": by}, bound=1.0)])]


def _complex(name: str, matrices: Tensor) -> dict[str, Tensor]:
    whole = matrices.resolve_conj()
    return {f"{name}_real": whole.real, f"{name}_imaginary": whole.imag}


@written.register
def _(module: FourierAffine, step: Step) -> list[Plain]:
    layer = module.layer
    torus, shape = layer.torus(*step.inputs[1:]), step.bound.shape
    arrays = {**_complex("matrices", layer.matrices(torus)), "bias": layer.bias}
    plain = Plain("fourier", shape, {"torus": list(torus), "places": list(shape[1:])}, arrays)
    return [*_folded(step.inputs, layer.stride), plain]


@written.register
def _(module: FourierSandwich, step: Step) -> list[Plain]:
    layer = module.layer
    torus, shape = layer.torus(*step.inputs[1:]), step.bound.shape
    outer, inner = layer.matrices(torus)
    arrays = {**_complex("outer", outer), **_complex("inner", inner), "shift": layer.psi.exp() * layer.bias}
    plain = Plain("fourier_sandwich", shape, {"torus": list(torus), "places": list(shape[1:])}, arrays)
    return [*_folded(step.inputs, layer.stride), plain]


@written.register
def _(module: Reflected, step: Step) -> list[Plain]:
    arrays = {"u": module.u, "shift": module.shift}
    if module.padding_mode is None:
        return [Plain("reflection", step.bound.shape, {}, arrays)]
    settings = _settings((1, 1), [ends(module.u.shape[-1])] * 2, module.padding_mode == "circular")
    return [Plain("reflection_convolution", step.bound.shape, settings, arrays)]


@written.register
def _(
    module: nn.AvgPool2d | nn.AvgPool1d | ScaledAveragePool | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool1d, step: Step
) -> list[Plain]:
    """Average pools; an adaptive pool to one pixel has a single window."""
    padding, before = (0, 0), list[Plain]()
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool1d):
        kernel = stride = tuple(step.inputs[1:]) if len(step.inputs) == 3 else (1, step.inputs[1])
        divisor = math.prod(kernel)
    elif isinstance(module, ScaledAveragePool):
        kernel = stride = (module.size, module.size)
        divisor, before = module.size, _divisible(step.inputs, module.size)
    elif isinstance(module, nn.AvgPool1d):
        kernel, stride, padding = (1, one(module.kernel_size)), (1, one(module.stride)), (0, one(module.padding))
        divisor = kernel[1]
    else:
        kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
        divisor = module.divisor_override or math.prod(kernel)
    sides = [[side, side] for side in padding]
    settings = {"kernel": list(kernel), "stride": list(stride), "padding": sides, "divisor": divisor}
    return [*before, Plain("average", step.bound.shape, settings)]


@written.register
def _(module: nn.MaxPool2d | nn.MaxPool1d | nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool1d, step: Step) -> list[Plain]:
    """Maximum pools; ceil_mode is covered by the number of output places."""
    if isinstance(module, nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool1d):
        kernel = stride = (1, *step.inputs[1:])[-2:]
        before, dilation = (0, 0), (1, 1)
    elif isinstance(module, nn.MaxPool1d):
        kernel, stride, before, dilation = (
            (least, one(value))
            for least, value in ((1, module.kernel_size), (1, module.stride), (0, module.padding), (1, module.dilation))
        )
    else:
        kernel, stride, before, dilation = (
            pair(value) for value in (module.kernel_size, module.stride, module.padding, module.dilation)
        )
    places = (1, *step.bound.shape[1:])[-2:]
    settings = {"kernel": kernel, "stride": stride, "before": before, "dilation": dilation, "places": places}
    return [Plain("maximum", step.bound.shape, {key: list(value) for key, value in settings.items()})]


@written.register
def _(module: SpaceToDepth, step: Step) -> list[Plain]:
    return _folded(step.inputs, module.size)


@written.register(nn.ConstantPad2d)
@written.register(nn.ZeroPad2d)
def _(module: nn.ConstantPad2d, step: Step) -> list[Plain]:
    left, right, top, bottom = module.padding
    return [Plain("pad", step.bound.shape, {"padding": [[top, bottom], [left, right]], "value": float(module.value)})]


@written.register
def _(module: nn.PixelUnshuffle | nn.PixelShuffle, step: Step) -> list[Plain]:
    """Pixel shuffles; both order a block's pixels row by row within each channel."""
    if isinstance(module, nn.PixelShuffle):
        return [Plain("shuffle", step.bound.shape, {"block": module.upscale_factor})]
    return [Plain("unshuffle", step.bound.shape, {"block": module.downscale_factor})]
