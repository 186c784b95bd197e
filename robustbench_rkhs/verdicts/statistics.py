"""Exact binomial statistics: intervals of a share, two models on the same images, many comparisons at once."""

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy.special import bdtr, betaincinv  # scipy.stats takes half a second to import

from robustbench_rkhs.nodes.node import UserError

BLOCK = 64
"""Models that are tested with others at once."""


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
    tail per pair, 0.2 to 0.5 us.
    """
    whole = answered.all()
    exact = _exact(answered)
    yes = (right & answered).astype(exact)
    both = yes @ (yes if whole else answered.astype(exact)).T
    wrong = yes.sum(axis=1, keepdims=True) - both if whole else both - yes @ yes.T  # [a, b]: a right, b wrong
    above = np.triu_indices(len(wrong))
    if whole:
        shared = np.full(wrong.shape, answered.shape[1])
    else:
        shared = np.rint(answered.astype(exact) @ answered.astype(exact).T).astype(np.int64)
    found = np.empty(wrong.shape)
    found[above] = found.T[above] = _tails(wrong[above], wrong.T[above])
    return found, shared


def mcnemar_between(
    right: Bool[np.ndarray, "some images"],
    answered: Bool[np.ndarray, "some images"],
    other_right: Bool[np.ndarray, "models images"],
    other_answered: Bool[np.ndarray, "models images"],
) -> tuple[Float[np.ndarray, "some models"], Int[np.ndarray, "some models"]]:
    """`mcnemar_all` between some models and others. Cost: four products of matrices, and one binomial tail per pair.

    A block of others at a time, so that little is copied: fresh memory costs more than the products.
    """
    exact = _exact(answered)
    yes, asked = (right & answered).astype(exact), answered.astype(exact)
    tests, shared = np.empty((len(right), len(other_right))), np.empty((len(right), len(other_right)), dtype=np.int64)
    for start in range(0, len(other_right), BLOCK):
        block = slice(start, start + BLOCK)
        other_asked = other_answered[block].astype(exact)
        other = other_right[block] * other_asked
        both = yes @ other.T
        tests[:, block] = _tails(yes @ other_asked.T - both, asked @ other.T - both)
        shared[:, block] = np.rint(asked @ other_asked.T)
    return tests, shared


def _exact(answered: np.ndarray) -> Any:
    """The quicker type of float that holds every count."""
    return np.float32 if answered.shape[1] < 2**24 else np.float64


def _tails(only: np.ndarray, only_other: np.ndarray) -> np.ndarray:
    """The p-values of counts of images on which only the one, or only the other, is right."""
    one, other = (np.rint(counts).astype(np.int64) for counts in (only, only_other))
    least, total = np.minimum(one, other), one + other
    tails: np.ndarray = np.minimum(2 * bdtr(least, total, 0.5), 1.0)
    tails[2 * least == total] = 1.0  # twice a tail counts the middle twice
    return tails


def holm(pvalues: Iterable[float]) -> Float[np.ndarray, " tests"]:
    """Holm-adjusted p-values in the given order: rejecting those <= alpha keeps the family-wise error at alpha.

    The r-th smallest of m (r = 0, 1, ...) is multiplied by m - r, kept monotone and at most 1. Source: Holm, 1979.
    """
    given = np.asarray(pvalues if isinstance(pvalues, np.ndarray) else list(pvalues), dtype=np.float64)
    where, values = pd.factorize(given, use_na_sentinel=False)
    order, counts = np.argsort(values), np.bincount(where, minlength=len(values))
    smaller = np.cumsum(counts[order]) - counts[order]  # of equal ones the first has the largest factor
    stepped = np.empty(len(values))
    stepped[order] = np.minimum(np.maximum.accumulate(values[order] * (len(given) - smaller)), 1)
    adjusted: np.ndarray = stepped[where]
    return adjusted
