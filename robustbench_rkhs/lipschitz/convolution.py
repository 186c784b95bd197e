"""Proven norms of convolutions: frequency by frequency, by circular convolution on a torus that contains the image."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import gram_operator, verified_norm
from robustbench_rkhs.lipschitz.bounds import ROUND, Bound, Uncertifiable, affine, rule, spectral, upwards, weights
from robustbench_rkhs.runtime.clock import ask

CHUNK = 2**21
"""Most complex numbers in memory at once: 32 MiB."""
DENSE_SIDE, DENSE_SIZE = 1024, 2**22
"""A zero-padded convolution is written as a matrix if its smaller side and its size are at most these."""


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
        """Distance from the first to the last tap, both included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def outputs(self) -> int:
        """Size of the output; below one where the kernel does not fit."""
        return (self.size + self.before + self.after - self.reach) // self.stride + 1

    def torus(self) -> tuple[int, int, int]:
        """(points, phases, repeats): a torus on which this axis is a part of the circular convolution.

        Phases: stride s becomes stride 1 on blocks of s points (space to depth, an isometry). With N blocks of image,
        the outputs that read any of it start at blocks first..last and read up to last + r - 1, where r is the reach
        in blocks. On a torus of at least N - first and last + r points no block outside the image wraps onto it, and
        with last - first + 1 points no two outputs coincide: the operator consists of rows and columns of the circular one,
        so its norm is no larger. Repeats: how often circular padding computes one output again (each repeat adds its square).
        For a circular image that s does not divide, every stride-1 output is kept; the strided ones are among them.
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


Kernel = Float[Tensor, "groups outputs inputs height width"]
"""The weights of a convolution by group. Groups act on separate channels: the norm is the largest of theirs."""


def operator_norm(weight: Kernel, axes: tuple[Axis, Axis]) -> float:
    """The value of `operator_bound`."""
    return operator_bound(weight, axes)[0]


def operator_bound(weight: Kernel, axes: tuple[Axis, Axis]) -> tuple[float, str]:
    r"""Smallest proven upper bound of max ||conv(x)||_2 / ||x||_2 for a float64 kernel without bias, and its method.

    `dense`: the norm of the zero-padded operator itself, where its matrix is small; exact. Otherwise the smallest of `torus`
    (exact for circular padding whose stride divides the image), `reshaped` (exact where no two windows overlap) and `schur`;
    `gramian`: where that is more than 1 % too large and the image small, the Gram matrix of the operator itself, within 1 %.
    Cost: see each function; the cheap ones run first.
    """
    if not weight.any():
        return 0.0, "dense"
    inputs, outputs = (weight.shape[2], weight.shape[1])
    side, other = inputs * axes[0].size * axes[1].size, outputs * axes[0].outputs * axes[1].outputs
    zeros = not any(axis.circular for axis in axes)
    if zeros and min(side, other) <= DENSE_SIDE and weight.shape[0] * side * other <= DENSE_SIZE:
        return spectral(operator_matrix(weight, axes), 0.0), "dense"
    found = {"reshaped": reshaped_norm(weight, axes), "schur": schur_norm(weight, axes)}
    if math.prod(overlap(axis) for axis in axes) > 1:
        found["torus"] = torus_norm(weight, axes)
    method = min(found, key=found.__getitem__)
    if zeros and weight.shape[0] == 1 and min(side, other) <= gram_operator.SIDE:
        sizes, outs = (axes[0].size, axes[1].size), (axes[0].outputs, axes[1].outputs)
        tighter = gram_operator.tightened(weight[0], sizes, outs, places_of(axes), found[method])
        if tighter < found[method]:
            return tighter, "gramian"
    return found[method], method


def operator_matrix(weight: Kernel, axes: tuple[Axis, Axis]) -> Float[Tensor, "groups rows columns"]:
    """The zero-padded operator of each group as a matrix, whose entries are weights or zero. Differentiable."""
    groups, outputs, inputs, height, width = weight.shape
    row, column = axes
    matrix = weight.new_zeros(groups, outputs, row.outputs, column.outputs, inputs, row.size, column.size)
    for s in range(height):
        for t in range(width):
            p, r = _places(row, s)
            q, c = _places(column, t)
            matrix[:, :, p[:, None], q[None, :], :, r[:, None], c[None, :]] = weight[..., s, t].expand(len(p), len(q), -1, -1, -1)
    return matrix.flatten(4).flatten(1, 3)


def _places(axis: Axis, tap: int) -> tuple[Tensor, Tensor]:
    """The outputs that read the image through this tap, and the positions that they read."""
    outputs = torch.arange(axis.outputs)
    inputs = outputs * axis.stride + tap * axis.dilation - axis.before
    inside = (inputs >= 0) & (inputs < axis.size)
    return outputs[inside], inputs[inside]


def places_of(axes: tuple[Axis, Axis]) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """For each tap of both axes, the outputs that read through it, and the positions."""
    rows, columns = ([_places(axis, tap) for tap in range(axis.kernel)] for axis in axes)
    return rows, columns


def overlap(axis: Axis) -> int:
    """The most windows that contain a point: the taps that can reach it are stride / gcd(stride, dilation) apart."""
    _, phases, repeats = axis.torus()
    return -(-axis.kernel * math.gcd(phases, axis.dilation) // phases) * repeats


def reshaped_norm(weight: Kernel, axes: tuple[Axis, Axis]) -> float:
    """The norm of the kernel as an (outputs, inputs height width) matrix, times the sqrt of the most windows with one pixel.

    The operator cuts the image into windows, with that number as its squared norm, and applies the matrix to each. Weights are
    exact.
    """
    return upwards(spectral(weight.flatten(2), 0.0) * math.sqrt(math.prod(overlap(axis) for axis in axes)))


def schur_norm(weight: Kernel, axes: tuple[Axis, Axis]) -> float:
    """sqrt(||M||_1 ||M||_inf): from the largest sums of absolute weights into an output, and out of a pixel of any phase."""
    spread, repeats = _spread(weight.abs(), axes)
    into = spread.sum((2, 3, 4, 5, 6)).amax(1)
    out = spread.sum((1, 3, 5)).flatten(1).amax(1) * repeats
    return upwards((into.sqrt() * out.sqrt()).max().item(), ROUND + 2 * verified_norm.gamma(spread.numel()))


def torus_norm(weight: Kernel, axes: tuple[Axis, Axis]) -> float:
    r"""The largest norm of the kernel's matrix at a frequency of the torus of `Axis.torus`.

    .. math:: \max_{g, \theta} \Big\lVert \sum_t W_{g,t}\, e^{i \langle \theta, t \rangle} \Big\rVert_2,
              \qquad \theta \in 2 \pi \{k / m\}

    Rounding: an angle is reduced in integers and errs by at most 20 u, sine and cosine by 4 u (an assumption on the library:
    four units, of which it states one), so a wave by at most 48 u; the sum over T taps in real arithmetic by gamma_T in each
    part. Entrywise that is at most (48 u + sqrt(2) gamma_(T+1)) sum_t |W_t|, and the Frobenius norm of that is added to the
    norm that `verified_norm.norm` proves for the computed matrices.
    Cost: a product and a Cholesky factorisation for each frequency (half of them, by symmetry) and group.
    Source: Sedghi et al., ICLR 2019, for the circular operator; the embedding makes it an upper bound at zero padding.
    """
    cosine, sine, flat, shape, repeats = spectrum_parts(weight, axes)
    chunk = max(1, CHUNK // flat.shape[1])
    largest = 0.0
    for cosines, sines in zip(cosine.split(chunk), sine.split(chunk), strict=True):
        ask()
        matrices = torch.complex(cosines @ flat, sines @ flat).view(len(cosines), *shape)
        largest = verified_norm.norm(matrices, largest)
    taps = flat.shape[0]
    allowance = (48 * verified_norm.UNIT + 1.5 * verified_norm.gamma(taps + 1)) * (1 + 4 * verified_norm.gamma(flat.numel()))
    sizes = _scaled_frobenius(flat.abs().sum(0).view(shape))
    return upwards((largest + allowance * sizes) * math.sqrt(repeats))


def _scaled_frobenius(matrices: Float[Tensor, "groups rows columns"]) -> float:
    """The largest Frobenius norm, free of under- and overflow."""
    peak = matrices.max().item()
    return (matrices / peak).flatten(1).norm(dim=1).max().item() * peak if peak else 0.0


def spectrum_parts(weight: Kernel, axes: tuple[Axis, Axis]) -> tuple[Tensor, Tensor, Tensor, tuple[int, int, int], int]:
    """Cosines and sines (frequency, tap), the kernel (tap, entry) that they multiply, the entries' shape, and the repeats.

    An axis with one tap has the same matrix at every frequency, so only one is kept. Differentiable in the kernel.
    """
    spread, repeats = _spread(weight, axes)
    groups, outputs, inputs, down, row_phases, across, column_phases = spread.shape
    flat = spread.permute(3, 5, 0, 1, 2, 4, 6).reshape(down * across, -1)
    rows, columns = axes[0].torus()[0] if down > 1 else 1, axes[1].torus()[0] if across > 1 else 1
    shape = groups, outputs, inputs * row_phases * column_phases
    return *_waves((rows, columns), (down, across), weight.dtype, weight.device), flat, shape, repeats


def _spread(weight: Kernel, axes: tuple[Axis, Axis]) -> tuple[Tensor, int]:
    """The dilated kernel, cut into blocks of one stride: (group, output, input, tap, phase, tap, phase)."""
    groups, outputs, inputs = weight.shape[:3]
    (_, row_phases, row_repeats), (_, column_phases, column_repeats) = (axis.torus() for axis in axes)
    down, across = -(-axes[0].reach // row_phases), -(-axes[1].reach // column_phases)
    spread = weight.new_zeros(groups, outputs, inputs, down * row_phases, across * column_phases)
    height, width = (slice(0, axis.reach, axis.dilation) for axis in axes)
    spread[..., height, width] = weight
    return spread.view(groups, outputs, inputs, down, row_phases, across, column_phases), row_repeats * column_repeats


@lru_cache(maxsize=256)
def _waves(points: tuple[int, int], taps: tuple[int, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `_angles`, cached: training steps need the same ones again and again."""
    with torch.inference_mode(False):  # usable in later differentiated steps, whatever the mode of the first call
        angles = _angles(points, taps)
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def _angles(points: tuple[int, int], taps: tuple[int, int]) -> Float[Tensor, "frequencies taps"]:
    """2 pi (a s / m + b t / n) for half the frequencies, reduced in integers; the other half are conjugates."""
    (m, n), (down, across) = points, taps
    a, b = torch.arange(m), torch.arange(n // 2 + 1)
    row = torch.outer(a, torch.arange(down)) % m
    column = torch.outer(b, torch.arange(across)) % n
    turns = (row[:, None, :, None] * n + column[None, :, None, :] * m) % (m * n)
    return 2 * math.pi / (m * n) * turns.double().flatten(2).flatten(0, 1)


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """An option given once or twice, as a pair (height, width)."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) == 1:
        pair = (pair[0], pair[0])
    return pair[0], pair[1]


def image_size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width. Raises Uncertifiable at any other shape."""
    if len(shape) != 3:
        raise Uncertifiable(f"expected images of (channel, height, width), found shape {shape}")
    return shape[0], shape[1], shape[2]


def conv_axes(conv: nn.Conv2d, sizes: tuple[int, int]) -> tuple[Axis, Axis]:
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
    axes = conv_axes(module, (sizes[0], sizes[1]))
    norm, method = operator_bound(weight.view(module.groups, -1, *weight.shape[1:]), fitting(axes, shape))
    return Bound(norm, (weight.shape[0], axes[0].outputs, axes[1].outputs), method)


def fitting(axes: tuple[Axis, Axis], shape: tuple[int, ...]) -> tuple[Axis, Axis]:
    """The axes, checked to have an output. Raises Uncertifiable otherwise."""
    if min(axis.outputs for axis in axes) < 1:
        raise Uncertifiable(f"its kernel does not fit into an input of shape {shape}")
    return axes


affine.register(nn.Conv2d, lambda module: True)
