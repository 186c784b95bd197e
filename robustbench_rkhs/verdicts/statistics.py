"""Exact binomial statistics: intervals of a share, two models on the same images, many comparisons at once."""

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy.special import bdtr, betaincinv  # scipy.stats takes half a second to import

from robustbench_rkhs.nodes.node import UserError


class Proportion(NamedTuple):
    """A share of images with its 95% Clopper-Pearson limits."""

    share: float
    low: float
    high: float
    successes: int
    images: int

    @classmethod
    def of(cls, successes: int, images: int) -> "Proportion":
        return cls(successes / images if images else float("nan"), *clopper_pearson(successes, images), successes, images)


@cache
def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""The exact interval of a binomial share: quantiles of Beta(k, n-k+1) and Beta(k+1, n-k) at (1 -/+ confidence) / 2.

    Covers at least `confidence` at every true share; (0, 1) at n = 0. Raises UserError unless 0 <= successes <= n.
    Source: Clopper and Pearson, Biometrika 1934.
    """
    if not 0 <= successes <= n:
        raise UserError(f"expected 0 <= successes <= n, found {successes} of {n}")
    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact McNemar test: two-sided p-value that two models are equally accurate, from the images on which they differ.

    a, b: whether each model is right, per image.
    Under the null hypothesis each discordant image is a fair coin (exact binomial test); 1 where none is discordant.
    Raises UserError unless both are for the same images.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise UserError(f"expected answers on the same images, found shapes {first.shape} and {second.shape}")
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    return 1.0 if only_a == only_b else float(min(2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5), 1))


def mcnemar_all(
    right: Bool[np.ndarray, "models images"], answered: Bool[np.ndarray, "models images"]
) -> tuple[Float[np.ndarray, "models models"], Int[np.ndarray, "models models"]]:
    """`mcnemar` of every pair of models on the images that both answered, and the number of those.

    right: whether a model is right on an image; answered: whether it was asked. Cost: two products of matrices, and one binomial
    tail per distinct pair of counts.
    """
    whole = answered.all()
    exact: Any = np.float32 if answered.shape[1] < 2**24 else np.float64  # holds every count, and is quicker
    yes = (right & answered).astype(exact)
    both = yes @ (yes if whole else answered.astype(exact)).T
    wrong = yes.sum(axis=1, keepdims=True) - both if whole else both - yes @ yes.T
    only = np.rint(wrong).astype(np.int64)  # [a, b]: a right, b wrong
    least, total = np.minimum(only, only.T), only + only.T
    base, above = int(total.max(initial=0)) + 1, np.triu_indices(len(only))
    coded = total[above] * base + least[above]
    codes, where = np.unique(coded, return_inverse=True)  # of numbers, 20 times as fast as of rows
    totals, leasts = np.divmod(codes, base)
    tails = np.minimum(2 * bdtr(leasts, totals, 0.5), 1.0)
    tails[2 * leasts == totals] = 1.0  # twice a tail counts the middle twice
    if whole:
        shared = np.full(only.shape, answered.shape[1])
    else:
        shared = np.rint(answered.astype(exact) @ answered.astype(exact).T).astype(np.int64)
    found = np.empty(only.shape)
    found[above] = found.T[above] = tails[where]
    return found, shared


def holm(pvalues: Iterable[float]) -> Float[np.ndarray, " tests"]:
    """Holm-adjusted p-values in the given order: rejecting those <= alpha keeps the family-wise error at alpha.

    The r-th smallest of m (r = 0, 1, ...) is multiplied by m - r, kept monotone and at most 1. Source: Holm, 1979.
    """
    given = np.asarray(pvalues if isinstance(pvalues, np.ndarray) else list(pvalues), dtype=np.float64)
    values, where, counts = np.unique(given, return_inverse=True, return_counts=True)
    smaller = np.cumsum(counts) - counts  # of equal ones the first has the largest factor
    adjusted: np.ndarray = np.minimum(np.maximum.accumulate(values * (len(given) - smaller)), 1)[where]
    return adjusted
