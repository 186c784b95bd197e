"""Proven Lipschitz bounds of convolutions and pools along one axis: images of height one."""

import math

import torch
from torch import nn
from torch.nn import functional

from robustbench_rkhs.lipschitz.bounds import Bound, Uncertifiable, affine, rule, upwards, weights
from robustbench_rkhs.lipschitz.convolution import Axis, operator_bound
from robustbench_rkhs.lipschitz.rounding import fan
from robustbench_rkhs.nodes.reasons import reason

FLAT = Axis(1, 1)
"""The axis that a sequence lacks."""


def one(value: int | tuple[int, ...]) -> int:
    """An option along one axis."""
    return value if isinstance(value, int) else int(value[0])


def sequence_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels and length. Raises Uncertifiable at any other shape."""
    if len(shape) != 2:
        raise Uncertifiable(f"expected sequences of (channel, length), found shape {shape}")
    return shape[0], shape[1]


def fitting(axis: Axis, shape: tuple[int, ...]) -> Axis:
    """The axis, checked to have an output. Raises Uncertifiable otherwise."""
    if axis.outputs < 1:
        raise Uncertifiable(f"its kernel does not fit into an input of shape {shape}")
    return axis


def sequence_axis(conv: nn.Conv1d, size: int) -> Axis:
    """The axis of the convolution its forward pass runs."""
    kernel, stride, dilation = conv.weight.shape[2], one(conv.stride), one(conv.dilation)
    circular = conv.padding_mode == "circular"
    if circular:  # the forward pass reads this tuple, not `padding`
        before, after = conv._reversed_padding_repeated_twice
        if max(before, after) > size:
            raise Uncertifiable(f"circular padding {(before, after)} is wider than the sequence {size}")
    elif conv.padding_mode != "zeros":
        raise Uncertifiable(f"no rule for padding_mode {conv.padding_mode!r}, expected 'zeros' or 'circular'")
    elif conv.padding == "same":
        total = dilation * (kernel - 1)
        before, after = total // 2, total - total // 2
    else:
        before = after = 0 if isinstance(conv.padding, str) else one(conv.padding)
    return Axis(size, kernel, stride, dilation, before, after, circular)


@rule.register
def _(module: nn.Conv1d, shape: tuple[int, ...]) -> Bound:
    weight = weights(module.weight, "weight")
    if module.bias is not None:
        weights(module.bias, "bias")
    channels, size = sequence_size(shape)
    if channels != weight.shape[1] * module.groups:
        raise Uncertifiable(f"expected {weight.shape[1] * module.groups} channels, found an input of shape {shape}")
    axis = fitting(sequence_axis(module, size), shape)
    norm, method = operator_bound(weight.view(module.groups, -1, weight.shape[1], 1, weight.shape[2]), (FLAT, axis))
    return Bound(norm, (weight.shape[0], axis.outputs), method)


@rule.register
def _(module: nn.AvgPool1d, shape: tuple[int, ...]) -> Bound:
    channels, size = sequence_size(shape)
    if module.ceil_mode:
        raise Uncertifiable("no rule for ceil_mode")
    kernel, stride, padding = one(module.kernel_size), one(module.stride), one(module.padding)
    if padding and not module.count_include_pad:
        raise Uncertifiable("no rule for count_include_pad=False with padding")
    axis = fitting(Axis(size, kernel, stride, 1, padding, padding), shape)
    constant = torch.full((1, 1, 1, 1, kernel), 1 / kernel, dtype=torch.float64)
    norm, method = operator_bound(constant, (FLAT, axis))
    return Bound(upwards(norm), (channels, axis.outputs), method)  # rounded up for 1 / kernel


@rule.register
def _(module: nn.MaxPool1d, shape: tuple[int, ...]) -> Bound:
    """The square root of the most windows that can contain one position, as for nn.MaxPool2d."""
    sequence_size(shape)
    if module.return_indices:
        raise Uncertifiable("it returns indices beside the values")
    kernel, stride, dilation, padding = (
        one(value) for value in (module.kernel_size, module.stride, module.dilation, module.padding)
    )
    if dilation > 1 and padding > 0:
        raise Uncertifiable("no rule for dilation with padding, where a window may contain no position at all")
    try:
        sequence = torch.empty(1, *shape, device="meta")
        outputs = functional.max_pool1d(sequence, kernel, stride, padding, dilation, module.ceil_mode).shape[2]
    except RuntimeError as refused:
        raise Uncertifiable(f"it does not take an input of shape {shape}: {reason(refused)}") from None
    windows = min(-(-kernel * math.gcd(stride, dilation) // stride), outputs)
    return Bound(1.0 if windows == 1 else upwards(math.sqrt(windows)), (shape[0], outputs))


def _single(module: nn.AdaptiveAvgPool1d | nn.AdaptiveMaxPool1d) -> None:
    if module.output_size not in (1, (1,), [1]):
        raise Uncertifiable(f"no rule for output size {module.output_size}, expected 1")


@rule.register
def _(module: nn.AdaptiveAvgPool1d, shape: tuple[int, ...]) -> Bound:
    channels, size = sequence_size(shape)
    _single(module)
    return Bound(upwards(1 / math.sqrt(size)), (channels, 1))


@rule.register
def _(module: nn.AdaptiveMaxPool1d, shape: tuple[int, ...]) -> Bound:
    """|max a - max b| <= max |a - b| in each channel, which has one window."""
    channels, _ = sequence_size(shape)
    _single(module)
    if module.return_indices:
        raise Uncertifiable("it returns indices beside the values")
    return Bound(1.0, (channels, 1))


for _kind in (nn.Conv1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d):
    affine.register(_kind, lambda module: True)
for _pool in (nn.MaxPool1d, nn.AdaptiveMaxPool1d):
    fan.register(_pool, lambda module, inputs, outputs: (1, 1))


@fan.register
def _(module: nn.Conv1d, inputs: int, outputs: int) -> tuple[int, int]:
    taps = module.weight.shape[2]
    copies = 3 if module.padding_mode == "circular" else 1  # a position occurs up to three times
    return taps * module.weight.shape[1], copies * taps * module.weight.shape[0] // module.groups
