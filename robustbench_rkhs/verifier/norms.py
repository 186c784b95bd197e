"""Proven upper bounds of operator norms in float64: an eigenvalue solver estimates, a Cholesky factorisation proves."""

import math

import numpy as np

UNIT = 2.0**-53
"""Unit roundoff of float64."""
TINY = 1e-290
"""Least bound of anything that is not exactly zero."""
CLOSE = 1e-8
"""Relative tolerance: a claim proved up to this is accepted, and no tighter bound is computed."""


class Unproved(Exception):
    """A norm could not be proved; says why."""


def met(value: float, claim: float | None) -> bool:
    """Whether a recomputed bound confirms a claim."""
    return claim is not None and value <= claim * (1 + CLOSE)


def norm(matrices: np.ndarray, claim: float | None = None) -> float:
    r"""Upper bound of the largest l2 norm of a batch of finite matrices (..., rows, columns), real or complex.

    With G the smaller Gram matrix, n its order, k the longer side, u the unit roundoff: where the Cholesky factor of t I - G
    exists in floating point, t I - G + E is positive semidefinite with ||E|| <= 8 (n + 4) u trace(t I) (Demmel; Rump, BIT
    2006), and G itself is off by at most 8 (k + 4) u ||A||_F^2. Hence, whatever the solver said,
    ||A||^2 <= t (1 + 8 n (n + 4) u) + 8 (k + 4) u ||A||_F^2.
    A claim that one factor at its own square proves is taken as it is; otherwise an eigenvalue solver guesses.
    """
    if not matrices.size or not matrices.any():
        return 0.0
    if claim is not None and below(matrices, claim):
        return max(claim * (1 + CLOSE), TINY)
    gram, scale, added = _gram(matrices)
    order = gram.shape[-1]
    guess = max(float(np.linalg.eigvalsh(gram).max()), 1 / 16)
    for slack in (1e-10, 1e-9, 1e-8, 1e-7):
        top = guess * (1 + slack + 32 * order * (order + 4) * UNIT)
        if proved(gram, top):
            square = top * inflation(order) + added
            return max(math.sqrt(square) * (1 + 8 * UNIT) / scale, TINY)
    raise Unproved("no Cholesky factor proves its norm")


def below(matrices: np.ndarray, claim: float) -> bool:
    """Whether one Cholesky factorisation proves every norm of a batch to be at most a claim (up to CLOSE)."""
    gram, scale, added = _gram(matrices)
    return scaled_down(claim, scale) and proved(gram, admitted(claim * (1 + CLOSE) * scale, gram.shape[-1], added))


def _gram(matrices: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The smaller Gram matrices of a scaled batch, the scale, and how far they are off in norm."""
    peak = float(np.abs(matrices).max())
    if not math.isfinite(peak):
        raise Unproved("a matrix is not finite")
    scale = 1.0 if peak == 0 else 2.0 ** min(max(-math.frexp(peak)[1], -1000), 1000)  # a power of two: no rounding
    scaled = matrices.reshape(-1, *matrices.shape[-2:]) * scale
    rows, columns = scaled.shape[-2:]
    order, length = min(rows, columns), max(rows, columns)
    other = scaled.conj().swapaxes(-1, -2)
    gram = scaled @ other if rows <= columns else other @ scaled
    frobenius = float((np.abs(scaled) ** 2).sum(axis=(1, 2)).max()) * (1 + 4 * (order * length + 4) * UNIT)
    return gram, scale, 8 * (length + 4) * UNIT * frobenius + 1e-280


def scaled_down(claim: float, scale: float) -> bool:
    """Whether the square of the scaled claim neither over- nor underflows."""
    return 1e-100 < claim * scale < 1e100


def inflation(order: int) -> float:
    """Factor on t that covers the rounding of a Cholesky factor of t I - G, including that of the diagonal."""
    return 1 + (8 * order * (order + 4) + 8) * UNIT


def admitted(bound: float, order: int, added: float) -> float:
    """The largest t whose factor proves this bound, where G is off by `added`; rounded down."""
    return (bound * bound * (1 - 4 * UNIT) - added) / inflation(order) * (1 - 4 * UNIT)


def proved(gram: np.ndarray, top: float) -> bool:
    """Whether the Cholesky factors of top I - G exist."""
    if not top > 0:
        return False
    tested = -gram
    diagonal = np.arange(gram.shape[-1])
    tested[..., diagonal, diagonal] += top
    return factored(tested)


def factored(matrices: np.ndarray) -> bool:
    """Whether symmetric matrices have finite Cholesky factors with positive pivots."""
    if not np.isfinite(matrices).all():
        return False
    try:
        pivots = np.diagonal(np.linalg.cholesky(matrices), axis1=-2, axis2=-1)
    except np.linalg.LinAlgError:
        return False
    return bool(np.isfinite(pivots).all() and (pivots.real > 0).all())


def positive(matrix: np.ndarray, slack: float) -> bool:
    """Whether every symmetric matrix within `slack` (l2 norm) of this real one is proved positive semidefinite.

    A factor that exists is exact for a matrix at most 2 (n + 2) u trace away (Demmel; Rump): it is tried on the matrix less that.
    """
    order, trace = len(matrix), float(np.abs(np.diagonal(matrix)).sum())
    shift = (slack + 4 * (order + 2) * UNIT * trace + TINY) * (1 + 1e-9)
    if not math.isfinite(shift):
        return False
    lowered = matrix.copy()
    lowered[np.arange(order), np.arange(order)] -= shift
    return factored(lowered)


def frobenius(values: np.ndarray) -> float:
    """Root of the sum of squares of real entries, rounded up; scaled, so that no square under- or overflows."""
    peak = float(np.abs(values).max(initial=0.0))
    if peak == 0 or not math.isfinite(peak):
        return peak
    return max(math.sqrt(float(((values / peak) ** 2).sum())) * peak * (1 + 1e-9), TINY)


def absolute(rows: np.ndarray, columns: np.ndarray) -> float:
    """Upper bound of the norm of |A| from its row sums and column sums: sqrt of the product of the largest."""
    largest = math.sqrt(float(rows.max(initial=0.0))) * math.sqrt(float(columns.max(initial=0.0)))
    return largest * (1 + 1e-9)
