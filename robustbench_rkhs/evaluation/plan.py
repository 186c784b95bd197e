"""The plan: which certificates run and in which order, learnt in counted cost from a pilot of a few images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float, Int

from robustbench_rkhs.runtime.counter_rng import mix

PILOT = 8
"""Images of the pilot."""
SURE = 5
"""Of them, those of the largest margin, which are proved first if any is; the others are drawn."""
MANY = 6
"""More certificates than these are not tried in every order: all run in theirs."""
Settled = Bool[np.ndarray, "pilot eps"]


@dataclass(frozen=True)
class Trial:
    """What a certificate did on the pilot."""

    label: str
    cost: float
    """Multiply-adds per image."""
    radius: tuple[float, ...]
    """What it proved of each image of the pilot."""
    refused: bool = False
    """It has no proof for this model."""


@dataclass(frozen=True)
class Plan:
    """Which certificates run, in this order, and which are left out."""

    order: tuple[str, ...]
    left_out: tuple[str, ...]


def pilot(
    open_: Int[np.ndarray, " some"], margins: Float[np.ndarray, " images"], index: Int[np.ndarray, " images"], seed: int
) -> Int[np.ndarray, " pilot"]:
    """Positions of the pilot among the open images, ascending: those of the largest margins, and some drawn by (seed, index)."""
    by_margin = open_[np.lexsort([open_, -margins[open_]])]
    sure, others = by_margin[:SURE], by_margin[SURE:]
    drawn = sorted(others.tolist(), key=lambda place: mix(seed, int(index[place]), 13))[: PILOT - SURE]
    return np.sort(np.concatenate([sure, np.array(drawn, dtype=np.int64)]))


def planned(trials: Sequence[Trial], epsilons: Sequence[float], certified: Sequence[float]) -> Plan:
    """Of all orders of the certificates that settle as much on the pilot as all together do, the one of the least counted cost.

    Each runs on the images that those before it left open at some eps. A certificate that settles nothing beyond the others is in
    no such order. Ties go to the fewer, then to the order given. `certified`: what was proved of each image before.
    """
    able = {trial.label: trial for trial in trials if not trial.refused}
    asked = np.array(sorted(epsilons))
    before: Settled = np.array(certified)[:, None] >= asked
    proves: dict[str, Settled] = {label: np.array(trial.radius)[:, None] >= asked for label, trial in able.items()}
    everything = np.logical_or.reduce([before, *proves.values()])
    orders = [order for count in range(len(able) + 1) for order in permutations(able, count)] if len(able) <= MANY else []
    best, least = tuple(able), np.inf
    for order in orders:
        cost, settled = 0.0, before
        for label in order:
            open_ = ~np.all(settled, axis=1, keepdims=True)
            cost += able[label].cost * int(open_.sum())
            settled = settled | (proves[label] & open_)
        if cost < least and bool((settled == everything).all()):
            best, least = order, cost
    return Plan(best, tuple(label for label in able if label not in best))
