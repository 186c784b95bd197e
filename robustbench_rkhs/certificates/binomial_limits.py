"""Lower limits of a probability from counted hits: Clopper-Pearson for one look, and two that hold at all times."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.special import betaincinv, betaln

LARGEST = 8.0
"""The largest stake of the bettor, in log odds."""


def lower_limit(hits: int, n: int, alpha: float) -> float:
    """Clopper-Pearson: the largest p at which `hits` or more of n have probability alpha; 0 without hits."""
    return float(betaincinv(hits, n - hits + 1, alpha)) if hits else 0.0


def mixture_limit(hits: int, n: int, alpha: float) -> float:
    r"""The lower end of the confidence sequence of the Beta(1/2, 1/2) mixture martingale.

    .. math:: M_n(p) = \frac{B(s + 1/2,\, n - s + 1/2)}{B(1/2, 1/2)\, p^s (1 - p)^{n - s}} < 1 / \alpha

    M_n(p) is a martingale of mean 1 where p is true, so by Ville's inequality p leaves the interval, at any time ever, with
    probability at most alpha. M_n falls in p up to s / n: bisection, rounded down.
    """
    mass = float(betaln(hits + 0.5, n - hits + 0.5) - betaln(0.5, 0.5))
    return _edge(lambda p: mass - hits * math.log(p) - (n - hits) * math.log1p(-p), hits / n, alpha)


@cache
def stakes(n: int) -> np.ndarray:
    """The stakes of `betting_limit` for at most n samples: 8, 4, 2 ... down to 8 / sqrt(n), the best one for a test after n."""
    found = LARGEST * 0.5 ** np.arange(math.ceil(math.log2(n) / 2) + 1)
    found.setflags(write=False)
    return found


def log_wealth(hits: int, n: int, p: float, horizon: int) -> float:
    r"""Log of what a bettor who began with 1, and bets that hits are likelier than p, holds after n samples.

    .. math:: W_n(p) = \frac1K \sum_{k=1}^K \prod_{i=1}^n \frac{e^{\lambda_k X_i}}{1 - p + p\, e^{\lambda_k}}
                     = \frac1K \sum_{k=1}^K \frac{e^{\lambda_k s}}{(1 - p + p\, e^{\lambda_k})^n}

    lambda: `stakes(horizon)`, fixed before the first sample. Cost: O(K), K about log2(horizon) / 2.
    """
    bets = stakes(horizon)
    return float(np.logaddexp.reduce(bets * hits - n * np.log1p(p * np.expm1(bets)))) - math.log(len(bets))


def betting_limit(hits: int, n: int, alpha: float, horizon: int) -> float:
    r"""The smallest p against which a bettor has not made 1 / alpha: a lower limit that holds at all times.

    Where q is the true probability of a hit, and p >= q, each factor of W_n(p) has expectation
    (1 - q + q e^lambda) / (1 - p + p e^lambda) <= 1, whatever came before. So W_n(p) is a non-negative supermartingale that
    begins at 1, and by Ville's inequality it ever reaches 1 / alpha with probability at most alpha. W_n(p) falls in p,
    strictly: the p that it rejects are those below the limit, and the limit ever exceeds q only if W_n(q) reaches 1 / alpha.
    One bettor thus serves every asked-for radius, without a share of alpha for each. Bisection, rounded down.
    Source: Ville, 1939; Waudby-Smith and Ramdas, JRSS-B 2024 (betting); the stakes are ours.
    """
    return _edge(lambda p: log_wealth(hits, n, p, horizon), hits / n, alpha)


def _edge(evidence: Callable[[float], float], share: float, alpha: float) -> float:
    """The smallest p in (0, share) whose falling log evidence is below log 1 / alpha, from below; 0 where none is rejected."""
    rejected, kept = 0.0, share
    for _ in range(50):
        middle = (rejected + kept) / 2
        if 0 < middle < 1 and evidence(middle) >= -math.log(alpha):
            rejected = middle
        else:
            kept = middle
    return rejected
