r"""The schedule: which image is attacked next, and at which eps. It works on arrays alone and runs no model.

Asked for is the state of every image at every eps of a grid (a few radii, or a whole curve of them). For one image let c be its
certified radius, b the distance of its nearest known adversarial image and s the largest budget that the whole protocol survived
at. The image is settled at every eps <= c (certified), every eps >= b (broken) and every eps <= s (survived; below s itself this is
inferred, the one heuristic here, and marked as such in the verdicts). What remains is the grid inside (max(c, s), b).

Each image is attacked at the **largest** eps that remains, and this is the least work:

- Any schedule must run the protocol at the largest eps of the grid that an image finally survives at, or the survival there is
  unknown: one run per image that survives anywhere. Here it is the last run, and it settles everything below.
- Every other run here ends in a fall at a distance d <= eps, which settles all of [d, eps]. So runs <= 1 + falls, and a fall is
  cheap: an attack leaves an image as soon as it is broken, while a survivor costs the whole protocol.
- From below (smallest eps first) each survival settles one eps alone, so an image costs a whole protocol at every eps it survives.
  Bisection would settle the same by fewer runs only where falls are many, and pays whole protocols for its survivals in between.
- No run is made where a certificate or a known adversarial image decides, which is why both come first: a minimal-norm attack at a
  hundredth of the protocol's cost brings b near to the truth at once, and leaves a single run for most images.

Images nearest to falling go first: those whose b lies least above their eps, by b / eps, then those of unknown b, by clean margin.
They are the likeliest to fall, falls are the cheapest to find, and they are what moves the upper end of the interval
[certified, not broken]; so the answer at any moment is about the best there is for the time spent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from robustbench_rkhs.runtime.counter_rng import mix

FIRST = 8
"""Images of the first block of a cheap attack: after it, the remaining time is reported."""


@dataclass(frozen=True)
class Known:
    """What is known of each image, by position."""

    right: Bool[np.ndarray, " images"]
    """Classified correctly as it is; the others need nothing."""
    certified: Float[np.ndarray, " images"]
    """Largest proved radius; 0 or less where nothing is proved."""
    broken: Float[np.ndarray, " images"]
    """Distance of the nearest adversarial image, inf where none is known."""
    survived: Float[np.ndarray, " images"]
    """Largest budget that the whole protocol survived at; -inf where none."""

    def open(self, eps: float) -> Bool[np.ndarray, " images"]:
        """Which images are not settled at eps: right, and certified < eps < broken, and above what the protocol survived at."""
        floor = np.maximum(self.certified, 0)
        result: np.ndarray = self.right & (floor < eps) & (eps < self.broken) & (self.survived < eps)
        return result


def next_eps(epsilons: Sequence[float], known: Known) -> Float[np.ndarray, " images"]:
    """The eps each image is to be attacked at next, the largest of its open ones; NaN where none is open."""
    chosen = np.full(len(known.right), np.nan)
    for eps in sorted(set(epsilons)):
        chosen[known.open(eps)] = eps
    return chosen


def order(
    eps: Float[np.ndarray, " images"], known: Known, margin: Float[np.ndarray, " images"], by_eps: bool = False
) -> Int[np.ndarray, " some"]:
    """Positions of the images that have an eps to be attacked at (not NaN), nearest to falling first.

    `margin`: of the clean logits, where no adversarial image is known. `by_eps`: the largest eps first, and so ordered within each
    (for attacks that take one eps a call). Ties go by position, so that the order follows from what is known alone.
    """
    there = np.flatnonzero(~np.isnan(eps))
    reach = known.broken[there] / eps[there]  # above 1; inf where nothing broke it
    keys = [there, margin[there], reach]
    return there[np.lexsort([*keys, -eps[there]] if by_eps else keys)]


def blocks(order: Int[np.ndarray, " some"], size: int, first: int | None = None) -> Iterator[Int[np.ndarray, " block"]]:
    """The ordered positions in blocks of `size`, the first of `first` images where given."""
    start, length = 0, min(first or size, size)
    while start < len(order):
        yield order[start : start + length]
        start, length = start + length, size


def sample(pairs: Sequence[tuple[int, float]], keys: Int[np.ndarray, " images"], seed: int, count: int) -> list[tuple[int, float]]:
    """`count` of the pairs (position, eps), chosen by draws counted by (seed, the image's key, eps) and in the draws' order.

    A pair's draw depends on no other pair, nor on how they are ordered. A second pair of one image is taken only when every image
    has one.
    """
    drawn = sorted((mix(seed, int(keys[place]), int(np.float64(eps).view(np.int64))), place, eps) for place, eps in pairs)
    seen: dict[int, int] = {}
    ranked = []
    for draw, place, eps in drawn:
        seen[place] = seen.get(place, -1) + 1
        ranked.append((seen[place], draw, place, eps))
    return [(place, eps) for _, _, place, eps in sorted(ranked)[:count]]
