"""Operations without bounds, rewritten as layers that have them: a Sandwich is linear, ReLU, linear."""

import math
from functools import singledispatch

import torch
from torch import Tensor, nn

from robustbench_rkhs.layers import GroupSort, Residual, Scale
from robustbench_rkhs.layers.borders import Convolution, Padding, ends
from robustbench_rkhs.layers.fourier import FourierConv, torus_kernel
from robustbench_rkhs.layers.lowered import hold, linear, plain
from robustbench_rkhs.layers.maps import FourierAffine
from robustbench_rkhs.layers.reflection import Reflected
from robustbench_rkhs.layers.sandwich import Sandwiched
from robustbench_rkhs.layers.sandwich_conv import FourierSandwich
from robustbench_rkhs.layers.traced_maps import Diagonal
from robustbench_rkhs.lipschitz import fan
from robustbench_rkhs.nodes.node import UserError

Shape = tuple[int, ...]


class Exchange(nn.Module):
    """Sorts pairs of channels: the larger value first, the smaller second; other channels stay."""

    first: Tensor
    second: Tensor

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.register_buffer("first", first)
        self.register_buffer("second", second)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x[:, self.first], x[:, self.second]
        y = x.index_copy(1, self.first, torch.maximum(one, other))
        return y.index_copy(1, self.second, torch.minimum(one, other))


fan.register(Exchange, lambda module, inputs, outputs: (1, 1))


class TorusConv2d(nn.Conv2d):
    """A circular convolution as large as the image; `entries` bounds its entries before terms cancelled in their sum."""

    entries: Tensor


@singledispatch
def expanded(operation: nn.Module, like: Tensor) -> nn.Module:
    """An operation on inputs such as `like` (a batch) as a chain of others, or itself where it has no such form.

    Weights are computed from those of the operation, differentiably.
    """
    return plain(operation)


@expanded.register
def _(operation: Sandwiched, like: Tensor) -> nn.Module:
    return nn.Sequential(linear(operation.inner, operation.shift), nn.ReLU(), linear(operation.outer, None))


@expanded.register
def _(operation: Convolution, like: Tensor) -> nn.Module:
    stride, mode = operation.stride, operation.padding_mode
    return nn.Sequential(*_convolution(operation.weight, operation.bias, stride, mode, _shape(like)))


@expanded.register
def _(operation: Reflected, like: Tensor) -> nn.Module:
    u, mode, shape = operation.u, operation.padding_mode, _shape(like)
    if mode is None:
        return Residual(nn.Sequential(linear(u, operation.shift), nn.ReLU(), linear(-2 * u.T, None)), nn.Identity())
    before, after = ends(u.shape[-1])
    there = _convolution(u, operation.shift, 1, mode, shape)
    back = _convolution(-2 * u.transpose(0, 1).flip(2, 3), None, 1, mode, shape, (after, before))
    return Residual(nn.Sequential(*there, nn.ReLU(), *back), nn.Identity())


@expanded.register
def _(operation: FourierAffine, like: Tensor) -> nn.Module:
    layer, shape = operation.layer, _shape(like)
    torus = layer.torus(*shape[1:])
    return nn.Sequential(*_onto(layer, shape), _torus(layer.matrices(torus), layer.bias, torus), *_off(layer, shape))


@expanded.register
def _(operation: FourierSandwich, like: Tensor) -> nn.Module:
    layer, shape = operation.layer, _shape(like)
    torus = layer.torus(*shape[1:])
    outer, inner = layer.matrices(torus)
    hidden = _torus(math.sqrt(2) * inner, layer.psi.exp() * layer.bias, torus)
    return nn.Sequential(*_onto(layer, shape), hidden, nn.ReLU(), _torus(math.sqrt(2) * outer, None, torus), *_off(layer, shape))


@expanded.register
def _(operation: GroupSort, like: Tensor) -> nn.Module:
    """Groups of more than two by odd-even transposition sort: as many rounds of comparisons as the group has channels."""
    group, shape = operation.group, _shape(like)
    if group == 2 or shape[0] % group or type(operation) is not GroupSort:
        return operation
    starts, rounds = torch.arange(0, shape[0], group, device=like.device), []
    for number in range(group):
        first = (starts[:, None] + torch.arange(number % 2, group - 1, 2, device=like.device)).flatten()
        if len(first):
            rounds.append(Exchange(first, first + 1))
    return nn.Sequential(*rounds)


@expanded.register(nn.Hardtanh)
@expanded.register(nn.ReLU6)
def _(operation: nn.Hardtanh, like: Tensor) -> nn.Module:
    """h - relu((h - l) - relu(z - l)) for the limits l and h."""
    if not _runs_its_own(operation, (nn.Hardtanh, nn.ReLU6)):
        return operation
    low, high = operation.min_val, operation.max_val
    plain = [_numbers(like, 1.0, -low), nn.ReLU(), _numbers(like, -1.0, high - low), nn.ReLU(), _numbers(like, -1.0, high)]
    return nn.Sequential(*plain)


@expanded.register
def _(operation: nn.Hardsigmoid, like: Tensor) -> nn.Module:
    """1 - relu(6 - relu(z + 3)) / 6."""
    if not _runs_its_own(operation, (nn.Hardsigmoid,)):
        return operation
    return nn.Sequential(_numbers(like, 1.0, 3.0), nn.ReLU(), _numbers(like, -1.0, 6.0), nn.ReLU(), _numbers(like, -1 / 6, 1.0))


@expanded.register
def _(operation: nn.LeakyReLU, like: Tensor) -> nn.Module:
    """s z + (1 - s) relu(z), where the slope s lies outside of [0, 1]: |z| for s = -1."""
    slope = operation.negative_slope
    if 0 <= slope <= 1 or not _runs_its_own(operation, (nn.LeakyReLU,)):
        return operation
    return Residual(Scale(slope), nn.Sequential(nn.ReLU(), Scale(1 - slope)))


def _runs_its_own(operation: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether an operation runs the code of its type, without hooks; any other is left for `interval.check` to refuse."""
    hooked = operation._forward_hooks or operation._forward_pre_hooks
    return type(operation) in kinds and "forward" not in vars(operation) and not hooked


def _numbers(like: Tensor, scale: float, shift: float) -> Diagonal:
    """scale z + shift."""
    one = like.new_ones((1,) * like.dim())
    return Diagonal(scale * one, shift * one)


def _shape(like: Tensor) -> Shape:
    return tuple(like.shape[1:])


def _convolution(
    weight: Tensor, bias: Tensor | None, stride: int, padding_mode: Padding, shape: Shape, padding: tuple[int, int] | None = None
) -> list[nn.Module]:
    """`borders.convolve` as layers: zero padding first, then nn.Conv2d."""
    before, after = ends(weight.shape[-1]) if padding is None else padding
    circular, parts = padding_mode == "circular", list[nn.Module]()
    if circular:
        parts += _divisible(shape, stride)
        sides = tuple(-(-side // stride) * stride for side in shape[1:])
        if max(before, after) > min(sides):
            raise UserError(f"a circular convolution of kernel {weight.shape[-1]} wraps more than once around an image of {sides}")
    elif before != after:
        parts.append(nn.ZeroPad2d((before, after, before, after)))
    outputs, inputs, kernel, _ = weight.shape
    whole = 0 if circular or before != after else before
    conv = nn.Conv2d(inputs, outputs, kernel, stride, whole, padding_mode=padding_mode, bias=bias is not None, device="meta")
    if circular:
        conv._reversed_padding_repeated_twice = [before, after, before, after]
    hold(conv, weight=weight, bias=bias)
    return [*parts, conv]


def _divisible(shape: Shape, by: int) -> list[nn.Module]:
    """Zeros at the end of the image, up to the next multiples."""
    rows, columns = -shape[1] % by, -shape[2] % by
    return [nn.ZeroPad2d((0, columns, 0, rows))] if rows or columns else []


def _onto(layer: FourierConv, shape: Shape) -> list[nn.Module]:
    """The image folded onto its torus."""
    (rows, columns), (height, width) = layer.torus(*shape[1:]), layer.places(*shape[1:])
    folded = [*_divisible(shape, layer.stride), nn.PixelUnshuffle(layer.stride)] if layer.stride > 1 else []
    wider = [nn.ZeroPad2d((0, columns - width, 0, rows - height))] if (rows, columns) != (height, width) else []
    return [*folded, *wider]


def _off(layer: FourierConv, shape: Shape) -> list[nn.Module]:
    """The image cut out of the torus."""
    (rows, columns), (height, width) = layer.torus(*shape[1:]), layer.places(*shape[1:])
    return [nn.ZeroPad2d((0, width - columns, 0, height - rows))] if (rows, columns) != (height, width) else []


def _torus(matrices: Tensor, bias: Tensor | None, torus: tuple[int, int]) -> nn.Module:
    """The circular convolution by these matrices: output p reads input q through entry p - q of the kernel."""
    kernel, entries = torus_kernel(matrices, torus)
    outputs, inputs, rows, columns = kernel.shape
    conv = TorusConv2d(inputs, outputs, (rows, columns), padding_mode="circular", bias=bias is not None, device="meta")
    conv._reversed_padding_repeated_twice = [columns - 1, 0, rows - 1, 0]
    hold(conv, weight=kernel.flip(2, 3), bias=None if bias is None else bias.to(kernel))
    conv.register_buffer("entries", entries.detach())
    return conv


def enlarged(conv: nn.Module) -> Tensor:
    """Absolute values of a layer's weight, at least as large as the terms that its entries are sums of."""
    weight: Tensor = conv.weight.abs()  # type: ignore[operator]
    if isinstance(conv, TorusConv2d):
        return torch.maximum(weight, conv.entries[:, :, None, None].expand_as(weight))
    return weight
