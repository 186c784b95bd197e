"""Proven norms of matrices: guessed by an eigenvalue solver, proved by a Cholesky factorisation."""

import math

import torch
from jaxtyping import Bool, Inexact
from torch import Tensor

from robustbench_rkhs.runtime.clock import afford, ask

UNIT = 2.0**-53
"""Unit roundoff of float64."""
GROWTH, WIDEST = 8.0, 1e-5
"""Growth of a guess's inflation from try to try, and its maximum."""
LARGE, SMALL = 2.0**400, 1e-290
"""A larger bound is proved at LARGE, which is a stronger claim; a nonzero bound below SMALL is rounded up to it."""
STEPS = 6
"""Power steps by which the matrices are ranked; the ranking needs no proof."""


def gamma(count: float) -> float:
    """count u / (1 - count u), rounded up: the largest relative error of `count` successive roundings."""
    if count * UNIT >= 0.1:
        raise ValueError(f"no rounding analysis for sums of {count:.0f} terms in float64")
    return count * UNIT / (1 - count * UNIT) * (1 + 8 * UNIT)


def proves(matrices: Inexact[Tensor, "*batch rows columns"], bound: float) -> bool:
    r"""True only where every float64 or complex128 matrix A of the batch has ||A||_2 <= bound in real arithmetic.

    With A scaled by a power of two to a peak in [1/2, 1), k the longer and n the shorter side, G the computed Gram matrix of
    the shorter side, u the unit roundoff, and gamma_m = m u / (1 - m u):

    .. math:: \lVert G - A^* A \rVert_2 \le \gamma_{3(k+1)} \lVert A \rVert_F^2 =: e_G, \qquad
              \text{chol}(c I - G) \text{ completes} \Rightarrow
              A^* A \preceq \big( c\, (1 + u + \tfrac{n \gamma_{4(n+4)}}{1 - \gamma_{4(n+4)}}) + e_G \big) I

    1. G is formed by real products: Re G = [Re A; Im A]^T [Re A; Im A] errs by gamma_2k of the sum of absolute values, Im G by
    gamma_(k+1), in any order of summation and with or without fused operations; both are at most |A|^T |A| entrywise, whose
    2-norm is at most its trace ||A||_F^2; sqrt(2) gamma_2k < gamma_3(k+1).
    2. The diagonal of c I - G is rounded by at most u c.
    3. Cholesky's factor R of a matrix T satisfies |R^* R - T| <= gamma_(n+1) |R|^* |R| in real arithmetic, hence
    R^* R - T has a norm of at most gamma/(1 - gamma) trace(T), and trace(T) <= n c (Demmel 1989; Rump 2006, "Verification of
    positive definiteness"; Higham 2002, theorems 10.3 and 10.5). In complex arithmetic a real or imaginary part sums at most
    2n + 4 roundings, again times sqrt(2): gamma_4(n+4) covers both.
    4. Underflow errs by at most (n + k)^2 2^-1021 altogether (flushed to zero or not), which is below u c here, since c >= 1/5.

    Assumed of the library: products summed term by term (no Strassen), triangular systems by substitution.
    False proves nothing: the bound may still hold. Cost: one Gram product and one factorisation per matrix.
    """
    if not bound >= 0 or not matrices.isfinite().all():
        return False
    if not matrices.numel() or not matrices.any():
        return True
    parts, exponent = _scaled(matrices)
    gram, inflation, added = _gram(*parts)
    claimed = _times_two_to(bound, -exponent)
    return claimed > 0.25 and bool(_below(gram, _admitted(min(claimed, LARGE), inflation, added)).all())


def norm(matrices: Inexact[Tensor, "*batch rows columns"], at_least: float = 0.0) -> float:
    """A proven upper bound of max(at_least, the largest ||A||_2 of the batch), by the analysis of `proves`.

    The matrices that a few power steps rank first give a guess (eigenvalues of their Gram matrices); Cholesky proves it for
    all at once; those where it fails give the next guess. A guess is inflated by some units, eight times more after each
    failure; past a relative 1e-5 (which no test has reached) it is replaced by sqrt(||A||_1 ||A||_inf), rounded up.
    Excess over the truth: below 1e-14 at order 4, 1e-10 at order 512.
    Cost: a Gram product and a factorisation per matrix, and the eigenvalues of a few.
    """
    if not matrices.numel() or not matrices.any():
        return at_least
    if not matrices.isfinite().all():
        raise ValueError("expected finite matrices, found NaN or infinity")
    parts, exponent = _scaled(matrices)
    gram, inflation, added = _gram(*parts)
    order = gram.shape[-1]
    left, square = torch.arange(len(gram)), 0.0
    floor = _times_two_to(at_least, -exponent)
    if floor > 0.25:
        square = _admitted(min(floor, LARGE), inflation, added)
        left = left[~_below(gram, square)]
        if not len(left):  # proved to lie below the floor
            return at_least
    ranks = _ranks(gram)
    while len(left):
        ask()
        first = left[ranks[left].topk(min(2 if order > 128 else 8, len(left))).indices]
        guess, wider = max(square, _largest_eigenvalue(gram[first])), 16 * (order + 4) * UNIT
        while not _below(gram[first], guess * (1 + wider)).all():
            ask()
            wider *= GROWTH
            if wider > WIDEST:
                return max(at_least, _sure(parts, exponent))
        square = guess * (1 + wider)
        left = left[~_below(gram[left], square)]
        left = left[~torch.isin(left, first)]
    proved = math.sqrt((square * inflation + added) * (1 + 4 * UNIT)) * (1 + 4 * UNIT)
    return _up(proved, exponent, at_least)


def _scaled(matrices: Tensor) -> tuple[tuple[Tensor, Tensor | None], int]:
    """Real and imaginary part (None for a real matrix), the short side last, and the power of two they were divided by.

    The peak of both is then in [1/2, 1). Exact but for underflow. Norms are those of the transpose.
    """
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    both = [flat.real, flat.imag] if flat.is_complex() else [flat]
    exponent = math.frexp(max(part.abs().max().item() for part in both))[1]
    half = -exponent // 2  # 2^-exponent itself may overflow
    both = [part * 2.0**half * 2.0 ** (-exponent - half) for part in both]
    if flat.shape[-1] > flat.shape[-2]:
        both = [part.mT for part in both]
    return (both[0], both[1] if len(both) == 2 else None), exponent


def _gram(real: Tensor, imaginary: Tensor | None) -> tuple[Tensor, float, float]:
    """A^* A, and the relative and the absolute allowance of `proves` for its rounding and that of Cholesky."""
    length, order = real.shape[-2:]
    afford(real.numel() * order * (1 if imaginary is None else 3))
    if imaginary is None:
        gram, squares = real.mT @ real, real.square().sum((1, 2))
    else:
        stacked, crossed = torch.cat([real, imaginary], 1), real.mT @ imaginary
        gram = torch.complex(stacked.mT @ stacked, crossed - crossed.mT)
        squares = stacked.square().sum((1, 2))
    frobenius = squares.max().item() * (1 + 2 * gamma(2 * length * order))
    cholesky = gamma(4 * (order + 4))
    inflation = (1 + UNIT + order * cholesky / (1 - cholesky)) * (1 + 8 * UNIT)
    return gram, inflation, gamma(3 * (length + 1)) * frobenius * (1 + 8 * UNIT)


def _admitted(bound: float, inflation: float, added: float) -> float:
    """The largest c whose factorisation proves `bound`, rounded down."""
    return (bound * bound * (1 - 4 * UNIT) - added) / inflation * (1 - 4 * UNIT)


def _below(gram: Tensor, square: float) -> Bool[Tensor, " batch"]:
    """For which matrices the factorisation of c I - G runs to its end."""
    if not square > 0:
        return torch.zeros(len(gram), dtype=torch.bool)
    afford(_work(gram))
    tested = -gram
    tested.diagonal(dim1=-2, dim2=-1).add_(square)
    factors, info = torch.linalg.cholesky_ex(tested)
    pivots = factors.diagonal(dim1=-2, dim2=-1)
    result: Tensor = (info == 0) & (pivots.real > 0).all(-1) & pivots.isfinite().all(-1)
    return result


def _work(gram: Tensor) -> float:
    """The cost of the factorisations, in multiply-adds of a product: they reach about a third of its speed."""
    return float(gram.numel() * gram.shape[-1] * (4 if gram.is_complex() else 1))


def _ranks(gram: Tensor) -> Tensor:
    """An estimate of each matrix's largest eigenvalue: power steps from its longest column."""
    longest = gram.abs().square().sum(1).argmax(-1)
    vector = gram[torch.arange(len(gram)), :, longest].unsqueeze(-1)
    for _ in range(STEPS):
        vector = gram @ (vector / vector.abs().amax(1, keepdim=True).clamp_min(1e-200))
    before = vector / vector.abs().amax(1, keepdim=True).clamp_min(1e-200)
    return (gram @ before).abs().square().sum((1, 2)).sqrt() / before.abs().square().sum((1, 2)).sqrt().clamp_min(1e-200)


def _largest_eigenvalue(gram: Tensor) -> float:
    """The solver's value; if it fails, a hundredth of a certain bound, which the Cholesky proof then rejects and increases."""
    afford(8 * _work(gram))
    try:
        return float(max(torch.linalg.eigvalsh(gram).max().item(), 0.2))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return 0.2


def _sure(parts: tuple[Tensor, Tensor | None], exponent: int) -> float:
    """sqrt(||A||_1 ||A||_inf), rounded up."""
    sizes = parts[0].abs() if parts[1] is None else parts[0].abs() + parts[1].abs()
    product = (sizes.sum(1).amax(1) * sizes.sum(2).amax(1)).max().item()
    return _up(math.sqrt(product) * (1 + gamma(2 * sum(sizes.shape[1:]) + 8)), exponent, 0.0)


def _times_two_to(value: float, exponent: int) -> float:
    """Infinite where it overflows."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _up(value: float, exponent: int, at_least: float) -> float:
    """value 2^exponent, not less in the range of underflow either."""
    return max(at_least, _times_two_to(value, exponent), SMALL)
