"""Early stopping for randomized smoothing: sequential Clopper-Pearson bounds by alpha-spending, and a confidence sequence."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from scipy.special import betaincinv, betaln

from robustbench_rkhs.runtime.clock import OutOfTime

Stopping = Literal["fixed", "spending", "sequence"]
"""`fixed`: one limit, after all samples; `spending`: limits at planned looks; `sequence`: a limit valid at any time."""
FIRST, GROWTH, STEP = 100, 2.0, 20
"""Samples at the first look; factor between looks of `spending`; `sequence` looks after another 1/20 of the samples."""


class Estimate(NamedTuple):
    """A lower limit of the share of hits, and the number of samples that it took."""

    lower: float
    draws: int
    hits: int
    cut: bool = False
    """The clock ended the sampling: the limit is that of the last look, so it holds like any other."""


class Limits(NamedTuple):
    """One look: a lower limit that errs with probability alpha over all looks, an upper one that errs with `futility`."""

    lower: float
    upper: float


def looks(n: int, alpha: float) -> list[tuple[int, float]]:
    """Samples at each look of `spending`, and its share of alpha: half for the last, the rest in equal parts.

    Fixed before the first sample, so that by the union bound all limits hold at once with probability 1 - alpha.
    """
    numbers, at = [], float(FIRST)
    while at < n / math.sqrt(GROWTH):
        numbers.append(round(at / FIRST) * FIRST)
        at *= GROWTH
    return [(number, alpha / 2 / len(numbers)) for number in numbers] + [(n, alpha / 2 if numbers else alpha)]


def moments(n: int, alpha: float) -> list[tuple[int, float]]:
    """The looks of `sequence`, each with all of alpha: its limits hold at any time; fewer looks only save work."""
    numbers = [min(FIRST, n)]
    while numbers[-1] < n:
        numbers.append(min(numbers[-1] + max(FIRST, numbers[-1] // STEP // FIRST * FIRST), n))
    return [(number, alpha) for number in numbers]


def lower_limit(hits: int, n: int, alpha: float) -> float:
    """Clopper-Pearson: the largest p at which `hits` or more of n have probability alpha; 0 without hits."""
    return float(betaincinv(hits, n - hits + 1, alpha)) if hits else 0.0


def upper_limit(hits: int, n: int, alpha: float) -> float:
    """Clopper-Pearson: the smallest p at which `hits` or fewer of n have probability alpha; 1 without misses."""
    return 1.0 - lower_limit(n - hits, n, alpha)


def mixture_limits(hits: int, n: int, alpha: float) -> tuple[float, float]:
    r"""The confidence sequence of the Beta(1/2, 1/2) mixture martingale: the shares that it does not yet reject.

    .. math:: M_n(p) = \frac{B(s + 1/2,\, n - s + 1/2)}{B(1/2, 1/2)\, p^s (1 - p)^{n - s}} < 1 / \alpha

    M_n(p) is a martingale of mean 1 where p is true, so by Ville's inequality p leaves the interval, at any time ever, with
    probability at most alpha. M_n falls in p up to s / n and rises after it: bisection, rounded outwards.
    """
    mass = float(betaln(hits + 0.5, n - hits + 0.5) - betaln(0.5, 0.5)) + math.log(alpha)

    def excluded(p: float) -> bool:
        if p <= 0 or p >= 1:
            return hits > 0 if p <= 0 else hits < n
        return mass - hits * math.log(p) - (n - hits) * math.log1p(-p) >= 0

    def edge(outside: float, inside: float) -> float:
        if not excluded(outside):
            return outside
        for _ in range(40):
            middle = (outside + inside) / 2
            outside, inside = (middle, inside) if excluded(middle) else (outside, middle)
        return outside

    return edge(0.0, hits / n), edge(1.0, hits / n)


def estimate(
    count: Callable[[int, int], int],
    radius: Callable[[float], float],
    epsilons: Sequence[float],
    *,
    n: int,
    alpha: float,
    futility: float,
    stopping: Stopping,
) -> Estimate:
    """Sample until every eps is decided: `radius(lower limit)` reaches it, or `radius(upper limit)` does not; at most n samples.

    count(begin, end): hits among samples number begin .. end-1. The lower limit exceeds the true share with probability at
    most alpha, whenever sampling stops. Giving up needs no such guarantee to be sound; the upper limit's `futility` bounds
    the probability of giving up where the true share would suffice. Without any eps, all n samples are drawn. If the time runs
    out, the result is the limit of the last look; without looks (`fixed`) there is none, and OutOfTime is raised.
    """
    if stopping == "fixed" or not epsilons:
        hits = count(0, n)
        low = mixture_limits(hits, n, alpha)[0] if stopping == "sequence" else lower_limit(hits, n, alpha)
        return Estimate(low, n, hits)
    plan = looks(n, alpha) if stopping == "spending" else moments(n, alpha)
    best, least, hits, seen = 0.0, 1.0, 0, 0
    for number, share in plan:
        try:
            hits += count(seen, number)
        except OutOfTime:
            return Estimate(best, seen, hits, cut=True)
        seen = number
        if stopping == "spending":
            low, high = lower_limit(hits, seen, share), upper_limit(hits, seen, futility * share / alpha)
        else:
            low, high = mixture_limits(hits, seen, alpha)[0], mixture_limits(hits, seen, futility)[1]
        best, least = max(best, low), min(least, high)  # all limits hold at once, so the best of them does
        if all(radius(best) >= eps or radius(least) < eps for eps in epsilons):
            break
    return Estimate(best, seen, hits)
