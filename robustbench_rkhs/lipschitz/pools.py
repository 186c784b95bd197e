"""Proven Lipschitz bounds of pools."""

import math

import torch
from torch import nn
from torch.nn import functional

from robustbench_rkhs.lipschitz.bounds import Bound, Uncertifiable, affine, rule, spectral, upwards
from robustbench_rkhs.lipschitz.convolution import Axis, fitting, image_size, operator_norm, pair
from robustbench_rkhs.lipschitz.linear_maps import matrix, run_on
from robustbench_rkhs.lipschitz.rounding import fan
from robustbench_rkhs.nodes.reasons import reason


@rule.register
def _(module: nn.AvgPool2d, shape: tuple[int, ...]) -> Bound:
    channels, *sizes = image_size(shape)
    kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    if module.ceil_mode or (max(padding) and not module.count_include_pad and module.divisor_override is None):
        return _cut_off(module, shape)
    axes = tuple(Axis(sizes[i], kernel[i], stride[i], 1, padding[i], padding[i]) for i in (0, 1))
    divisor = module.divisor_override or kernel[0] * kernel[1]
    fitting((axes[0], axes[1]), shape)
    norm = upwards(_sums(axes[0]) * _sums(axes[1]) / abs(divisor))
    return Bound(norm, (channels, axes[0].outputs, axes[1].outputs), "dense")


def _cut_off(module: nn.AvgPool2d, shape: tuple[int, ...]) -> Bound:
    """Windows that end at the border have fewer pixels in their mean: one matrix for each axis, whose norms multiply."""
    if module.divisor_override is not None:
        raise Uncertifiable("no rule for ceil_mode with divisor_override")
    kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    norm = 1.0
    for size, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True):
        pool = nn.AvgPool1d(k, s, p, module.ceil_mode, module.count_include_pad)
        norm = upwards(norm * spectral(matrix(pool, size)))
    return Bound(norm, run_on(module, shape), "dense")


def _sums(axis: Axis) -> float:
    """Proven norm of the sums over windows along one axis; for two axes, the norms multiply (a Kronecker product).

    sqrt(kernel) for images of any size if no two windows overlap and one lies inside the image: no pixel is summed twice.
    """
    first = -axis.before % axis.stride  # where the first window that begins inside does
    if axis.stride >= axis.kernel and first + axis.kernel <= axis.size:
        return upwards(math.sqrt(axis.kernel))
    return operator_norm(torch.ones(1, 1, 1, axis.kernel, 1, dtype=torch.float64), (axis, Axis(1, 1)))


@rule.register
def _(module: nn.AdaptiveAvgPool2d, shape: tuple[int, ...]) -> Bound:
    channels, height, width = image_size(shape)
    if module.output_size in (1, (1, 1), [1, 1]):
        return Bound(upwards(1 / math.sqrt(height * width)), (channels, 1, 1))
    found, norm = run_on(module, shape), 1.0
    for size, new in zip(shape[1:], found[1:], strict=True):
        norm = upwards(norm * spectral(matrix(nn.AdaptiveAvgPool1d(new), size)))
    return Bound(norm, found, "dense")


@rule.register
def _(module: nn.MaxPool2d, shape: tuple[int, ...]) -> Bound:
    """The square root of the most windows that can contain one pixel.

    |max a - max b| <= max |a - b| on each window, whatever the padding (it is -inf) and however many windows ceil_mode
    adds. Along an axis, pixel p lies in window o by tap t where s o + d t = p: the taps that fit are s / gcd(s, d)
    apart.
    """
    image_size(shape)
    if module.return_indices:
        raise Uncertifiable("it returns indices beside the values")
    kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
    if max(dilation) > 1 and max(pair(module.padding)) > 0:
        raise Uncertifiable("no rule for dilation with padding, where a window may contain no pixel at all")
    try:
        image = torch.empty(1, *shape, device="meta")
        _, _, height, width = functional.max_pool2d(image, kernel, stride, pair(module.padding), dilation, module.ceil_mode).shape
    except RuntimeError as refused:
        raise Uncertifiable(f"it does not take an input of shape {shape}: {reason(refused)}") from None
    windows = 1
    for k, s, d, outputs in zip(kernel, stride, dilation, (height, width), strict=True):
        windows *= min(-(-k * math.gcd(s, d) // s), outputs)
    return Bound(1.0 if windows == 1 else upwards(math.sqrt(windows)), (shape[0], height, width))


@rule.register
def _(module: nn.AdaptiveMaxPool2d, shape: tuple[int, ...]) -> Bound:
    """|max a - max b| <= max |a - b| in each channel, which has one window."""
    channels, _, _ = image_size(shape)
    if module.output_size not in (1, (1, 1), [1, 1]):
        raise Uncertifiable(f"no rule for output size {module.output_size}, expected 1")
    if module.return_indices:
        raise Uncertifiable("it returns indices beside the values")
    return Bound(1.0, (channels, 1, 1))


fan.register(nn.AdaptiveMaxPool2d, lambda module, inputs, outputs: (1, 1))
for _kind in (nn.AvgPool2d, nn.AdaptiveAvgPool2d):
    affine.register(_kind, lambda module: True)
