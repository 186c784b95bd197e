"""Early stopping for randomized smoothing: when to look at the samples, the lower limit at each look, and when to give up."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import betaln, gammaln

from robustbench_rkhs.certificates.binomial_limits import betting_limit, lower_limit, mixture_limit
from robustbench_rkhs.runtime.clock import OutOfTime

Stopping = Literal["betting", "spending", "sequence", "fixed"]
"""`betting`: a bettor's limit at any time, Clopper-Pearson at the end; `spending`: Clopper-Pearson at planned looks;
`sequence`: a mixture's limit at any time; `fixed`: Clopper-Pearson after all samples."""
FIRST, GROWTH, STEP = 100, 2.0, 20
"""Samples at the first look; factor between looks of `spending`; the others look after another 1/20 of the samples."""
DEVIATIONS = 12
"""Standard deviations after which the tail of a forecast ends: it has less than 1e-20 beyond."""


class Look(NamedTuple):
    """A number of samples at which to look, and the lower limit of the share of hits that holds then, by the hits."""

    samples: int
    limit: Callable[[int], float]


class Estimate(NamedTuple):
    """A lower limit of the share of hits, and the number of samples that it took."""

    lower: float
    draws: int
    hits: int
    cut: bool = False
    """The clock ended the sampling: the limit is that of the last look, so it holds like any other."""


def shares(n: int, alpha: float) -> list[tuple[int, float]]:
    """Samples at each look of `spending`, and its share of alpha: half for the last, the rest in equal parts.

    Fixed before the first sample, so that by the union bound all limits hold at once with probability 1 - alpha.
    """
    numbers, at = [], float(FIRST)
    while at < n / math.sqrt(GROWTH):
        numbers.append(round(at / FIRST) * FIRST)
        at *= GROWTH
    return [(number, alpha / 2 / len(numbers)) for number in numbers] + [(n, alpha / 2 if numbers else alpha)]


def moments(n: int) -> list[int]:
    """Samples at each look of the rules whose limits hold at any time: fewer looks only save work."""
    numbers = [min(FIRST, n)]
    while numbers[-1] < n:
        numbers.append(min(numbers[-1] + max(FIRST, numbers[-1] // STEP // FIRST * FIRST), n))
    return numbers


def looks(stopping: Stopping, n: int, alpha: float) -> list[Look]:
    """The looks of a rule, the last one after n samples: all their limits hold at once with probability 1 - alpha.

    `betting` gives half of alpha to the bettor, who may be asked at any time, and half to Clopper-Pearson after n samples, which
    proves more there: by the union bound the higher of both holds.
    """
    if stopping == "fixed" or n <= FIRST:
        return [Look(n, partial(lower_limit, n=n, alpha=alpha))]
    if stopping == "spending":
        return [Look(at, partial(lower_limit, n=at, alpha=share)) for at, share in shares(n, alpha)]
    if stopping == "sequence":
        return [Look(at, partial(mixture_limit, n=at, alpha=alpha)) for at in moments(n)]
    half = alpha / 2
    bettor = [Look(at, partial(betting_limit, n=at, alpha=half, horizon=n)) for at in moments(n)]
    return [*bettor[:-1], Look(n, lambda hits: max(bettor[-1].limit(hits), lower_limit(hits, n, half)))]


def forecast(hits: int, n: int, needed: int, total: int) -> float:
    r"""Posterior probability, from a Beta(1/2, 1/2) prior, of at least `needed` hits among `total` samples after `hits` of n.

    .. math:: P(\text{needed} \le s + S), \qquad S \sim \text{BetaBinomial}(\text{total} - n,\; s + 1/2,\; n - s + 1/2)
    """
    rest, more, a, b = total - n, needed - hits, hits + 0.5, n - hits + 0.5
    mean = rest * a / (n + 1)
    if more > rest:
        return 0.0
    if more <= mean:
        return 1.0  # about a half or more: nobody gives up
    wide = math.sqrt(mean * b / (n + 1) * (1 + rest / (n + 2)))
    s = np.arange(more, min(rest, math.ceil(mean + DEVIATIONS * wide) + FIRST) + 1)
    terms = gammaln(rest + 1) - gammaln(s + 1) - gammaln(rest - s + 1) + betaln(a + s, b + rest - s) - betaln(a, b)
    return float(np.exp(terms).sum())


def fewest(proves: Callable[[int], bool], n: int) -> int:
    """The smallest number of hits of n that `proves`, which holds from some number on; n + 1 where none does."""
    low, high = 0, n + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle + 1, high)
    return low


def goals(epsilons: Sequence[float], radius: Callable[[float], float], last: Look) -> dict[float, int]:
    """For each eps the hits with which the last look proves it."""

    def proves(eps: float, hits: int) -> bool:
        return radius(last.limit(hits)) >= eps

    return {eps: fewest(partial(proves, eps), last.samples) for eps in epsilons}


def estimate(
    count: Callable[[int, int], int],
    radius: Callable[[float], float],
    needed: Mapping[float, int],
    plan: Sequence[Look],
    futility: float,
) -> Estimate:
    """Sample until every eps of `needed` is decided: `radius(lower limit)` reaches it, or hardly would at the last look.

    count(begin, end): hits among samples number begin .. end-1. needed: `goals` of the plan's last look. The lower limit exceeds
    the true share with probability at most the plan's alpha, whenever sampling stops. An eps is given up where the forecast
    that the last look proves it is at most `futility`. That costs no soundness; and since a forecast is a martingale of the
    posterior, at most the share `futility` of what is given up, at any look, would have been proved, on average over the prior.
    If the time runs out, the result is the limit of the last look; without any eps, all samples are drawn.
    """
    total, best, hits, seen = plan[-1].samples, 0.0, 0, 0
    for look in plan:
        try:
            hits += count(seen, look.samples)
        except OutOfTime:
            return Estimate(best, seen, hits, cut=True)
        seen, best = look.samples, max(best, look.limit(hits))  # all limits hold at once, so the best of them does
        if needed and all(radius(best) >= eps or forecast(hits, seen, goal, total) <= futility for eps, goal in needed.items()):
            break
    return Estimate(best, seen, hits)
