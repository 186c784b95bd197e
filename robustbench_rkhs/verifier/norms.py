"""Proven upper bounds of operator norms in float64: an eigenvalue solver guesses, a Cholesky factor proves."""

import math

import numpy as np

UNIT = 2.0**-53
"""Unit roundoff of float64."""
TINY = 1e-290
"""No bound of anything but an exact zero is smaller."""
CHUNK = 2**20
"""Complex numbers of a convolution's spectrum held at once."""


class Unproved(Exception):
    """A norm could not be proved; says why."""


def norm(matrices: np.ndarray) -> float:
    r"""Upper bound of the largest l2 norm of a batch of finite matrices (..., rows, columns), real or complex.

    With G the smaller Gram matrix, n its order, k the longer side, u the unit roundoff: where the Cholesky factor of t I - G
    exists in floating point, t I - G + E is positive semidefinite with ||E|| <= 8 (n + 4) u trace(t I) (Demmel; Rump, BIT
    2006), and G itself is off by at most 8 (k + 4) u ||A||_F^2. Hence, whatever the solver said,
    ||A||^2 <= t (1 + 8 n (n + 4) u) + 8 (k + 4) u ||A||_F^2.
    """
    peak = float(np.abs(matrices).max()) if matrices.size else 0.0
    if peak == 0:
        return 0.0
    if not math.isfinite(peak):
        raise Unproved("a matrix is not finite")
    scale = 2.0 ** min(max(-math.frexp(peak)[1], -1000), 1000)  # a power of two: no rounding
    scaled = matrices.reshape(-1, *matrices.shape[-2:]) * scale
    rows, columns = scaled.shape[-2:]
    order, length = min(rows, columns), max(rows, columns)
    other = scaled.conj().swapaxes(-1, -2)
    gram = scaled @ other if rows <= columns else other @ scaled
    frobenius = float((np.abs(scaled) ** 2).sum(axis=(1, 2)).max()) * (1 + 4 * (order * length + 4) * UNIT)
    guess = max(float(np.linalg.eigvalsh(gram).max()), (scale * peak) ** 2)
    identity = np.eye(order)
    for slack in (1e-10, 1e-9, 1e-8, 1e-7):
        top = guess * (1 + slack + 32 * order * (order + 4) * UNIT)
        try:
            np.linalg.cholesky(top * identity - gram)
        except np.linalg.LinAlgError:
            continue
        square = top * (1 + (8 * order * (order + 4) + 8) * UNIT) + 8 * (length + 4) * UNIT * frobenius + 1e-280
        return max(math.sqrt(square) * (1 + 8 * UNIT) / scale, TINY)
    raise Unproved("no Cholesky factor proves its norm")


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
        stride = reach  # there is but one output: any stride is its own
    first, last, blocks = before // stride, (before + size - 1) // stride, -(-reach // stride)
    a, b = max(0, first - blocks + 1), min(outputs - 1, last)
    return max(b - a + 1, last - first + 1, last - a + 1, b + blocks - first, 1), stride, 1


def convolution(
    weight: np.ndarray,
    sizes: tuple[int, int],
    outputs: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    before: tuple[int, int],
    circular: bool,
) -> float:
    """Upper bound of the norm of a convolution with kernel (groups, outputs, inputs, height, width): the largest over frequencies.

    Groups act on channels of their own, so the largest of them counts. The matrices at the frequencies are off by at most
    (4 T + 48) u sum_t ||W_t||_F for T taps, which is added.
    """
    groups, rows, columns, *kernel = weight.shape
    reach = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    axes = [torus(sizes[i], reach[i], stride[i], before[i], outputs[i], circular) for i in (0, 1)]
    blocks = [-(-reach[i] // axes[i][1]) for i in (0, 1)]
    phases = axes[0][1], axes[1][1]
    spread = np.zeros((groups, rows, columns, blocks[0] * phases[0], blocks[1] * phases[1]))
    spread[..., : reach[0] : dilation[0], : reach[1] : dilation[1]] = weight
    spread = spread.reshape(groups, rows, columns, blocks[0], phases[0], blocks[1], phases[1])
    flat = spread.transpose(3, 5, 0, 1, 2, 4, 6).reshape(blocks[0] * blocks[1], -1)
    turns = [_waves(axes[0][0], blocks[0], axes[0][0]), _waves(axes[1][0], blocks[1], axes[1][0] // 2 + 1)]
    waves = np.einsum("as,bt->abst", *turns).reshape(-1, blocks[0] * blocks[1])
    step, largest = max(1, CHUNK // flat.shape[1]), 0.0
    for start in range(0, len(waves), step):
        part = (waves[start : start + step] @ flat).reshape(-1, rows, columns * phases[0] * phases[1])
        largest = max(largest, norm(part))
    if largest == 0:
        return 0.0 if not weight.any() else TINY
    taps, peak = len(flat), float(np.abs(flat).max())
    lengths = np.sqrt(((flat / peak).reshape(taps, groups, -1) ** 2).sum(2)).sum(0).max() * peak
    total = largest + (4 * taps + 48) * UNIT * float(lengths)
    return max(total * math.sqrt(axes[0][2] * axes[1][2]) * (1 + 8 * UNIT), TINY)


def _waves(points: int, taps: int, frequencies: int) -> np.ndarray:
    """e^(2 pi i k t / points), each angle reduced in integers first."""
    turns = np.outer(np.arange(frequencies), np.arange(taps)) % points
    return np.exp(2j * math.pi / points * turns)


def absolute(rows: np.ndarray, columns: np.ndarray) -> float:
    """Upper bound of the norm of |A| from its row sums and column sums: sqrt of the product of the largest."""
    largest = math.sqrt(float(rows.max(initial=0.0))) * math.sqrt(float(columns.max(initial=0.0)))
    return largest * (1 + 1e-9)
