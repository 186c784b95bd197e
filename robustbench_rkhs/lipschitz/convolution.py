"""Proven norms of convolutions: the circular operator on a torus that holds them, frequency by frequency."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz.bounds import Bound, Uncertifiable, affine, rule, spectral, upwards, weights

CHUNK = 2**21
"""Complex numbers held at once: 32 MiB."""


class Axis(NamedTuple):
    """A convolution along height or width."""

    size: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    """Padding at the low end."""
    after: int = 0
    """Padding at the high end."""
    circular: bool = False

    @property
    def reach(self) -> int:
        """Points from the first to the last tap, both included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def outputs(self) -> int:
        """Points of the output; below one where the kernel does not fit."""
        return (self.size + self.before + self.after - self.reach) // self.stride + 1

    def torus(self) -> tuple[int, int, int]:
        """(points, phases, repeats): a torus on which this axis is part of the circular convolution.

        Phases: stride s becomes stride 1 on blocks of s points (space to depth, an isometry). With N blocks of image,
        the outputs that read any of it start at blocks first..last and read up to last + r - 1, where r is the reach
        in blocks. On a torus of at least N - first and last + r points no block outside the image wraps onto it, and
        with last - first + 1 points no two outputs coincide: rows and columns of the circular operator, hence no
        larger norm. Repeats: how often circular padding computes one output again (each repeat adds its square). A
        circular image that s does not divide keeps every stride-1 output, of which the strided ones are a part.
        """
        if self.circular:
            if self.size % self.stride:
                return self.size, 1, -(-(self.stride * (self.outputs - 1) + 1) // self.size)
            points = self.size // self.stride
            return points, self.stride, -(-self.outputs // points)
        shift = self.before // self.stride
        blocks = (self.before + self.size - 1) // self.stride - shift + 1
        reach = -(-self.reach // self.stride)
        first = max(-shift, 1 - reach)
        last = min(self.outputs - 1 - shift, blocks - 1)
        return max(blocks, blocks - first, last + reach, last - first + 1), self.stride, 1


def operator_norm(weight: Float[Tensor, "groups outputs inputs height width"], axes: tuple[Axis, Axis]) -> float:
    r"""Upper bound of max ||conv(x)||_2 / ||x||_2 of a float64 kernel; the bias plays no part.

    .. math:: \max_{g, \theta} \Big\lVert \sum_t W_{g,t}\, e^{i \langle \theta, t \rangle} \Big\rVert_2,
              \qquad \theta \in 2 \pi \{k / m\}

    over the frequencies of the torus of `Axis.torus`; groups act on separate channels, so the largest counts, not the
    product. Cost: one Hermitian eigenvalue problem for each frequency (half of them, by symmetry) and group.
    Source: Sedghi et al., ICLR 2019, for the circular operator; the embedding makes it an upper bound at zero padding.
    """
    groups, outputs, inputs = weight.shape[:3]
    (rows, row_phases, row_repeats), (columns, column_phases, column_repeats) = (axis.torus() for axis in axes)
    phases = (row_phases, column_phases)
    taps = [-(-axis.reach // phase) for axis, phase in zip(axes, phases, strict=True)]
    spread = weight.new_zeros(groups, outputs, inputs, taps[0] * row_phases, taps[1] * column_phases)
    height, width = (slice(0, axis.reach, axis.dilation) for axis in axes)
    spread[..., height, width] = weight
    spread = spread.view(groups, outputs, inputs, taps[0], row_phases, taps[1], column_phases)
    flat = spread.permute(3, 5, 0, 1, 2, 4, 6).reshape(taps[0] * taps[1], -1).to(torch.complex128)
    row = _waves(rows, taps[0], rows)
    column = _waves(columns, taps[1], columns // 2 + 1)  # the other half are conjugates
    waves = torch.einsum("as,bt->abst", row, column).flatten(2).flatten(0, 1)
    chunk = max(1, CHUNK // flat.shape[1])
    largest = max(spectral((part @ flat).view(len(part), groups, outputs, -1)) for part in waves.split(chunk))
    repeats = row_repeats * column_repeats
    return largest if repeats == 1 or largest == 0 else upwards(largest * math.sqrt(repeats))


def _waves(points: int, taps: int, frequencies: int) -> Complex[Tensor, "frequencies taps"]:
    """e^(2 pi i k t / points), each angle reduced in integers first."""
    angles = torch.outer(torch.arange(frequencies), torch.arange(taps)) % points
    return torch.exp(2j * math.pi / points * angles.double())


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width of an option given once or twice."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) == 1:
        pair = (pair[0], pair[0])
    return pair[0], pair[1]


def image_size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width. Raises Uncertifiable at any other shape."""
    if len(shape) != 3:
        raise Uncertifiable(f"expected images of (channel, height, width), found shape {shape}")
    return shape[0], shape[1], shape[2]


def _axes(conv: nn.Conv2d, sizes: tuple[int, int]) -> tuple[Axis, Axis]:
    """Both axes of the convolution its forward pass runs."""
    kernel = (conv.weight.shape[2], conv.weight.shape[3])
    stride, dilation = pair(conv.stride), pair(conv.dilation)
    circular = conv.padding_mode == "circular"
    if circular:  # the forward pass reads this tuple, not `padding`
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        padding = [(top, bottom), (left, right)]
        if any(max(ends) > size for ends, size in zip(padding, sizes, strict=True)):
            raise Uncertifiable(f"circular padding {padding} is wider than the image {sizes}")
    elif conv.padding_mode != "zeros":
        raise Uncertifiable(f"no rule for padding_mode {conv.padding_mode!r}, expected 'zeros' or 'circular'")
    elif conv.padding == "same":
        total = [step * (length - 1) for step, length in zip(dilation, kernel, strict=True)]
        padding = [(pad // 2, pad - pad // 2) for pad in total]
    else:
        given = (0, 0) if isinstance(conv.padding, str) else pair(conv.padding)
        padding = [(pad, pad) for pad in given]
    row, column = (Axis(sizes[i], kernel[i], stride[i], dilation[i], *padding[i], circular) for i in (0, 1))
    return row, column


@rule.register
def _(module: nn.Conv2d, shape: tuple[int, ...]) -> Bound:
    weight = weights(module.weight, "weight")
    if module.bias is not None:
        weights(module.bias, "bias")
    channels, *sizes = image_size(shape)
    if channels != weight.shape[1] * module.groups:
        raise Uncertifiable(f"expected {weight.shape[1] * module.groups} channels, found an input of shape {shape}")
    axes = _axes(module, (sizes[0], sizes[1]))
    norm = operator_norm(weight.view(module.groups, -1, *weight.shape[1:]), fitting(axes, shape))
    return Bound(norm, (weight.shape[0], axes[0].outputs, axes[1].outputs))


def fitting(axes: tuple[Axis, Axis], shape: tuple[int, ...]) -> tuple[Axis, Axis]:
    """The axes, once they are seen to have an output. Raises Uncertifiable otherwise."""
    if min(axis.outputs for axis in axes) < 1:
        raise Uncertifiable(f"its kernel does not fit into an input of shape {shape}")
    return axes


affine.register(nn.Conv2d, lambda module: True)
