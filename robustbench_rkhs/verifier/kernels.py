"""Proven upper bounds of a convolution's norm, from its kernel, matrix, spectrum or Gram matrix; the cheapest is tried first."""

import math
from typing import NamedTuple

import numpy as np

from . import norms
from .norms import TINY, UNIT, met

Two = tuple[int, int]

CHUNK = 2**20
"""Complex numbers of a convolution's spectrum that are kept in memory at once."""
DENSE_SIDE, DENSE_SIZE = 1024, 2**22
"""A convolution is written out as a matrix where its smaller side and its size are at most these."""
GRAM_SIDE = 8192
"""Largest order of a Gram matrix of a whole convolution: 0.5 GiB."""


class Window(NamedTuple):
    """Geometry of a convolution along height and width."""

    sizes: Two
    outputs: Two
    stride: Two
    dilation: Two
    before: Two
    circular: bool

    def reads(self, axis: int, taps: int) -> np.ndarray:
        """(tap, output, pixel): how often output o reads pixel p through tap t: never or once."""
        size, places = self.sizes[axis], np.arange(self.outputs[axis]) * self.stride[axis] - self.before[axis]
        at = places[None] + self.dilation[axis] * np.arange(taps)[:, None]
        at = at % size if self.circular else at
        found: np.ndarray = (at[..., None] == np.arange(size)).astype(np.float64)
        return found


def bound(weight: np.ndarray, window: Window, claim: float | None = None) -> float:
    """Upper bound of the norm of a convolution with kernel (groups, outputs, inputs, height, width).

    Groups act on disjoint channels, so their largest norm counts. Costlier methods are skipped once a claim is confirmed.
    """
    if not weight.any():
        return 0.0
    groups, rows, columns, *kernel = weight.shape
    reads = window.reads(0, kernel[0]), window.reads(1, kernel[1])
    found = _of_sums(weight, reads)
    if not met(found, claim):
        found = min(found, _of_windows(weight, reads))
    if met(found, claim):
        return found
    side, other = columns * math.prod(window.sizes), rows * math.prod(window.outputs)
    if not window.circular and min(side, other) <= DENSE_SIDE and groups * side * other <= DENSE_SIZE:
        found = min(found, max(norms.norm(_matrix(part, reads), claim) for part in weight))
        if met(found, claim):
            return found
    if claim is not None and _on_torus(weight, window, claim) is not None:
        return max(claim * (1 + norms.CLOSE), TINY)
    if claim is not None and groups == 1 and not window.circular and min(side, other) <= GRAM_SIDE:
        if _by_gram(weight[0], reads, side <= other, claim):
            return max(claim * (1 + norms.CLOSE), TINY)
    on_torus = _on_torus(weight, window, None)
    return found if on_torus is None else min(found, on_torus)


def _of_sums(weight: np.ndarray, reads: tuple[np.ndarray, np.ndarray]) -> float:
    """sqrt(||M||_1 ||M||_inf): absolute weights into an output, and out of a pixel."""
    sizes = np.abs(weight)
    out = np.einsum("gochw,hp,wq->gcpq", sizes, reads[0].sum(1), reads[1].sum(1))
    into = sizes.sum(axis=(2, 3, 4))
    return max(norms.absolute(into[group], out[group]) for group in range(len(weight)))


def _of_windows(weight: np.ndarray, reads: tuple[np.ndarray, np.ndarray]) -> float:
    """The kernel as one matrix on each window, times the sqrt of how many windows hold a pixel: sum_o |x_o|^2 <= n |x|^2."""
    holding = float(reads[0].sum((0, 1)).max() * reads[1].sum((0, 1)).max())
    flat = weight.reshape(*weight.shape[:2], -1)
    return max(norms.norm(flat) * math.sqrt(holding) * (1 + 4 * UNIT), TINY)


def _matrix(weight: np.ndarray, reads: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The matrix of a group: each entry is a weight or zero, as an output reads a pixel through one tap at most."""
    rows, columns, height, width = weight.shape
    _, p, r = reads[0].shape
    _, q, s = reads[1].shape
    whole = np.zeros((rows, p, q, columns, r, s))
    for i in range(height):
        for j in range(width):
            (o, a), (v, b) = reads[0][i].nonzero(), reads[1][j].nonzero()
            whole[:, o[:, None], v[None, :], :, a[:, None], b[None, :]] = weight[:, :, i, j]
    return whole.reshape(rows * p * q, columns * r * s)


def _by_gram(weight: np.ndarray, reads: tuple[np.ndarray, np.ndarray], by_inputs: bool, claim: float) -> bool:
    r"""Whether a Cholesky factor of claim^2 I - G proves the claim, G the Gram matrix of the zero-padded operator.

    G is made of sums of products of the taps' matrices, at the pixels (or outputs) that share an output (or a pixel). An entry sums
    at most (taps squared) sums of n products: off by at most 2 (n + taps^2 + 4) u of |M|^T |M|, in norm at most ||M||_F^2 of that.
    """
    scale = 2.0 ** min(max(-math.frexp(float(np.abs(weight).max()))[1], -1000), 1000)
    if not norms.scaled_down(claim, scale):
        return False
    scaled, (height, width) = weight * scale, weight.shape[2:]
    if not by_inputs:
        scaled, reads = scaled.swapaxes(0, 1), (reads[0].swapaxes(1, 2), reads[1].swapaxes(1, 2))
    length, channels = scaled.shape[:2]
    sides = reads[0].shape[2], reads[1].shape[2]
    taps, order = [(i, j) for i in range(height) for j in range(width)], channels * sides[0] * sides[1]
    gram = np.zeros((sides[0] * sides[1], sides[0] * sides[1], channels, channels))
    frobenius = 0.0
    for i, j in taps:
        frobenius += float((scaled[:, :, i, j] ** 2).sum()) * float(reads[0][i].sum() * reads[1][j].sum())
        for k, m in taps:
            (a, b), (c, d) = (reads[0][i].T @ reads[0][k]).nonzero(), (reads[1][j].T @ reads[1][m]).nonzero()
            if len(a) and len(c):
                here, there = a[:, None] * sides[1] + c[None], b[:, None] * sides[1] + d[None]
                gram[here.ravel(), there.ravel()] += scaled[:, :, i, j].T @ scaled[:, :, k, m]
    added = 2 * (length + len(taps) ** 2 + 4) * UNIT * frobenius * (1 + 1e-9) + 1e-280
    whole = gram.transpose(0, 2, 1, 3).reshape(order, order)
    del gram
    return norms.proved(whole, norms.admitted(claim * (1 + norms.CLOSE) * scale, order, added))


def torus(size: int, reach: int, stride: int, before: int, outputs: int, circular: bool) -> tuple[int, int, int]:
    r"""(points, phases, copies) of one axis: a circular convolution on blocks of `phases` pixels that contains this one.

    y[o] = sum_t w[t] x[s o + t - before]. Count pixels from the low end of the padding and gather s of them in a block: the
    stride is gone, the image is in blocks first..last, and output o reads blocks o..o + r - 1. Only outputs a..b that read the
    image have weights. On m points these outputs are distinct if m >= b - a + 1, the image's blocks if m >= last - first + 1,
    and no black block that they read falls onto the image if a + m > last and b + r - 1 - m < first. Rows and columns of a
    matrix have no larger norm.
    A circular image is its own torus; an output that is computed c times multiplies the norm by at most sqrt(c).
    """
    if circular:
        phases = stride if size % stride == 0 else 1
        points = size // phases
        places = (np.arange(outputs) * (stride // phases)) % points
        return points, phases, int(np.bincount(places).max())
    if outputs == 1:
        stride = reach  # with one output every stride is equivalent
    first, last, blocks = before // stride, (before + size - 1) // stride, -(-reach // stride)
    a, b = max(0, first - blocks + 1), min(outputs - 1, last)
    return max(b - a + 1, last - first + 1, last - a + 1, b + blocks - first, 1), stride, 1


def _on_torus(weight: np.ndarray, window: Window, claim: float | None) -> float | None:
    """The largest norm of the kernel's matrix at a frequency; with a claim, None as soon as one is not proved to be below it.

    The matrices at the frequencies are off by at most (4 T + 48) u sum_t ||W_t||_F for T taps, which is added.
    """
    groups, rows, columns, *kernel = weight.shape
    reach = [window.dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    axes = [
        torus(window.sizes[i], reach[i], window.stride[i], window.before[i], window.outputs[i], window.circular) for i in (0, 1)
    ]
    blocks = [-(-reach[i] // axes[i][1]) for i in (0, 1)]
    phases = axes[0][1], axes[1][1]
    spread = np.zeros((groups, rows, columns, blocks[0] * phases[0], blocks[1] * phases[1]))
    spread[..., : reach[0] : window.dilation[0], : reach[1] : window.dilation[1]] = weight
    spread = spread.reshape(groups, rows, columns, blocks[0], phases[0], blocks[1], phases[1])
    flat = spread.transpose(3, 5, 0, 1, 2, 4, 6).reshape(blocks[0] * blocks[1], -1)
    taps, peak = len(flat), float(np.abs(flat).max())
    lengths = np.sqrt(((flat / peak).reshape(taps, groups, -1) ** 2).sum(2)).sum(0).max() * peak
    added, copies = (4 * taps + 48) * UNIT * float(lengths) * (1 + 1e-9), math.sqrt(axes[0][2] * axes[1][2]) * (1 + 4 * UNIT)
    least = None if claim is None else claim / copies * (1 - 4 * UNIT) - added
    turns = [_waves(axes[0][0], blocks[0], axes[0][0]), _waves(axes[1][0], blocks[1], axes[1][0] // 2 + 1)]
    waves = np.einsum("as,bt->abst", *turns).reshape(-1, blocks[0] * blocks[1])
    step, largest = max(1, CHUNK // flat.shape[1]), 0.0
    for start in range(0, len(waves), step):
        part = (waves[start : start + step] @ flat).reshape(-1, rows, columns * phases[0] * phases[1])
        if least is None:
            largest = max(largest, norms.norm(part))
        elif not norms.below(part, least):
            return None
    return claim if claim is not None else max((largest + added) * copies * (1 + 8 * UNIT), TINY)


def _waves(points: int, taps: int, frequencies: int) -> np.ndarray:
    """e^(2 pi i k t / points), each angle reduced in integers first."""
    turns = np.outer(np.arange(frequencies), np.arange(taps)) % points
    result: np.ndarray = np.exp(2j * math.pi / points * turns)
    return result
