"""The plan: which certificates run, in which order, decided by their counted cost on a pilot of a few images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float, Int

from robustbench_rkhs.runtime.counter_rng import mix

PILOT = 8
"""Images of the pilot."""
SURE = 5
"""Pilot images with the largest margins, the easiest to prove; the others are drawn at random."""
MANY = 6
"""With more certificates than this, orders are not enumerated: all run in their given order."""
Settled = Bool[np.ndarray, "pilot eps"]


@dataclass(frozen=True)
class Trial:
    """The result of a certificate on the pilot."""

    label: str
    cost: float
    """Multiply-adds per image."""
    radius: tuple[float, ...]
    """The proved radius of each image of the pilot."""
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
    """The order of certificates with the least counted cost that decides as much on the pilot as all certificates together.

    Each runs on the images that the earlier ones left open at some eps. A certificate that decides nothing beyond the others is
    left out. Ties go to fewer certificates, then to the given order. `certified`: the radii proved before.
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
