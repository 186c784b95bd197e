"""The norm of a zero-padded convolution on a small image, by one Cholesky factorisation of its full Gram matrix."""

import math
from collections.abc import Iterator
from itertools import product

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from robustbench_rkhs.lipschitz import elimination, verified_norm
from robustbench_rkhs.runtime.clock import ask

SIDE = 8192
"""Largest order of a Gram matrix that is computed: 0.5 GiB, and a second or two of Cholesky on two cores."""
LOOSE = 1.01
"""A bound this close to the estimate of the norm is kept."""
STEPS = 40
"""Lanczos steps of the estimate."""
MARGINS = (1e-3, 4e-3, 1.6e-2)
"""Relative increases of the estimated squared norm, one per try."""

Kernel = Float64[Tensor, "outputs inputs height width"]
Places = tuple[Tensor, Tensor]
"""Outputs that read the image through a tap along one axis, and the positions that they read."""


def tightened(
    kernel: Kernel, sizes: tuple[int, int], outputs: tuple[int, int], places: tuple[list[Places], list[Places]], bound: float
) -> float:
    r"""A proven bound of the zero-padded operator's norm, no larger than the given proven `bound`.

    .. math:: G_{pq} = \sum_{s, t} W_s^\top W_t \quad \text{over the outputs that read p through s and q through t}, \qquad
              \lVert M \rVert_2^2 = \lambda_{\max}(G)

    On an image not much larger than the kernel, the torus bound is at least 10 % too large (near the corners, outputs read pixels
    that the image does not have). Lanczos steps estimate the largest eigenvalue, which proves nothing; Cholesky's factor of c I - G
    proves it, as in `verified_norm.proves`: an entry of G sums at most (taps squared) products of length `channels`, so G errs by
    at most gamma_(channels + taps^2 + 2) ||M||_F^2 in norm. The side with fewer numbers is used. Cost: taps^2 products of channel
    matrices, and a factorisation of order at most 8192.
    """
    peak = kernel.abs().max().item()
    if peak == 0:
        return 0.0
    exponent = math.frexp(peak)[1]
    half = -exponent // 2
    scaled = kernel * 2.0**half * 2.0 ** (-exponent - half)
    claimed = bound * 2.0**half * 2.0 ** (-exponent - half)
    by_inputs = kernel.shape[1] * math.prod(sizes) <= kernel.shape[0] * math.prod(outputs)
    points, length = (sizes, kernel.shape[0]) if by_inputs else (outputs, kernel.shape[1])
    order = (kernel.shape[1] if by_inputs else kernel.shape[0]) * math.prod(points)
    if order > SIDE or not math.isfinite(claimed):
        return bound
    reached = guess(scaled, sizes, outputs, places)
    if claimed**2 <= reached * LOOSE**2:
        return bound
    gram, meets, frobenius = _gram(scaled, points, places, by_inputs)
    blocks, beside = elimination.tiles(gram, meets)
    taps = kernel.shape[2] * kernel.shape[3]
    added = verified_norm.gamma(length + taps**2 + 2) * frobenius * (1 + 1e-9)
    cholesky = verified_norm.gamma(4 * (order + 4))
    inflation = (1 + verified_norm.UNIT + order * cholesky / (1 - cholesky)) * (1 + 8 * verified_norm.UNIT)
    for margin in MARGINS:
        ask()
        square = reached * (1 + margin)
        if square >= claimed**2:
            break
        if elimination.completes(blocks, beside, square):
            proved = math.sqrt((square * inflation + added) * (1 + 4 * verified_norm.UNIT)) * (1 + 4 * verified_norm.UNIT)
            return min(bound, math.ldexp(proved, exponent))
    return bound


def _gram(
    kernel: Kernel, points: tuple[int, int], places: tuple[list[Places], list[Places]], by_inputs: bool
) -> tuple[Float64[Tensor, "points points channels channels"], Bool[Tensor, "points points"], float]:
    """M^T M (or M M^T) of the operator in blocks of two points, the blocks that may differ from zero, and ||M||_F^2.

    Only the lower half: no block of a point with a later one.
    """
    rows, columns = places
    taps = {(s, t): kernel[:, :, s, t].contiguous() for s in range(len(rows)) for t in range(len(columns))}
    channels = kernel.shape[1] if by_inputs else kernel.shape[0]
    gram = kernel.new_zeros(math.prod(points), math.prod(points), channels, channels)
    meets = torch.zeros(gram.shape[:2], dtype=torch.bool)
    frobenius = 0.0
    for s, first in taps.items():
        ask()
        frobenius += len(rows[s[0]][0]) * len(columns[s[1]][0]) * first.square().sum().item()
        for t, second in taps.items():
            p, q = _meeting(rows[s[0]], rows[t[0]], by_inputs), _meeting(columns[s[1]], columns[t[1]], by_inputs)
            here = (p[0][:, None] * points[1] + q[0][None]).flatten()
            there = (p[1][:, None] * points[1] + q[1][None]).flatten()
            lower = here >= there
            here, there = here[lower], there[lower]
            if len(here):
                gram[here, there] += first.T @ second if by_inputs else first @ second.T
                meets[here, there] = True
    return gram, meets, frobenius


def _meeting(first: Places, second: Places, by_inputs: bool) -> tuple[Tensor, Tensor]:
    """Pairs of points along an axis that one output reads through both taps (or outputs that read one point)."""
    (a, here), (b, there) = (first, second) if by_inputs else (first[::-1], second[::-1])
    same = (a[:, None] == b[None]).nonzero()
    return here[same[:, 0]], there[same[:, 1]]


def guess(
    kernel: Kernel,
    sizes: tuple[int, int],
    outputs: tuple[int, int],
    places: tuple[list[Places], list[Places]],
    steps: int = STEPS,
) -> float:
    """The largest Ritz value of M^T M after some Lanczos steps: a lower estimate, which needs no proof."""
    rows, columns = places
    taps = [[kernel[:, :, s, t].contiguous() for t in range(len(columns))] for s in range(len(rows))]
    generator = torch.Generator().manual_seed(0)
    vector: Float[Tensor, "inputs height width"] = torch.randn(kernel.shape[1], *sizes, dtype=torch.float64, generator=generator)
    steps = min(steps, vector.numel())
    basis, diagonal, off = kernel.new_zeros(steps + 1, vector.numel()), list[float](), list[float]()
    basis[0] = (vector / vector.norm()).flatten()
    for step in range(steps):
        ask()
        image = kernel.new_zeros(kernel.shape[0], *outputs)
        moved = torch.zeros_like(vector)
        for (s, (p, r)), (t, (q, c)) in _pairs(rows, columns):
            read = basis[step].view_as(vector)[:, r[:, None], c[None]]
            image[:, p[:, None], q[None]] += (taps[s][t] @ read.flatten(1)).view(-1, len(p), len(q))
        for (s, (p, r)), (t, (q, c)) in _pairs(rows, columns):
            read = image[:, p[:, None], q[None]]
            moved[:, r[:, None], c[None]] += (taps[s][t].T @ read.flatten(1)).view(-1, len(r), len(c))
        new, known = moved.flatten(), basis[: step + 1]
        diagonal.append(float(new @ basis[step]))
        for _ in range(2):  # reorthogonalising twice is enough
            new = new - (known @ new) @ known
        size = new.norm().item()
        off.append(size)
        if size <= 1e-7 * max(diagonal):
            break
        basis[step + 1] = new / size
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if len(diagonal) > 1:
        beside = torch.diag(torch.tensor(off[: len(diagonal) - 1], dtype=torch.float64), 1)
        matrix = matrix + beside + beside.T
    return float(torch.linalg.eigvalsh(matrix).max().item())


def _pairs(rows: list[Places], columns: list[Places]) -> Iterator[tuple[tuple[int, Places], tuple[int, Places]]]:
    """Every tap that meets the image, with its row and column numbers."""
    met = [[(number, places) for number, places in enumerate(axis) if len(places[0])] for axis in (rows, columns)]
    return product(met[0], met[1])
