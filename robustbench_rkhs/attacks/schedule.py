r"""The schedule: which image is attacked next, and at which eps. It works on arrays alone and runs no model.

The goal is the state of every image at every eps of a grid (a few radii, or a whole curve of them). For one image, let c be its
certified radius, b the distance of its nearest known adversarial image and s the largest budget at which it survived the whole
protocol. The image is decided at every eps <= c (certified), every eps >= b (broken) and every eps <= s (survived; below s this is
inferred, the one heuristic here, and marked as such in the verdicts). What remains is the grid inside (max(c, s), b).

Each image is attacked at the **largest** eps that remains, and this is the least work:

- Any schedule must run the protocol at the largest eps of the grid that an image finally survives, or its survival there is
  unknown: one run per image that survives anywhere. Here that is the last run, and it decides everything below.
- Every other run here ends in an adversarial image at a distance d <= eps, which decides all of [d, eps]. So there is at most one
  run more than adversarial images, and these are cheap: an attack leaves an image as soon as it is broken, while an image that
  survives costs the whole protocol.
- From below (smallest eps first), each survival decides one eps alone, so an image costs a whole protocol at every eps it survives.
  Bisection would need fewer runs only where most of them break the image, and pays whole protocols for the survivals in between.
- No run is made where a certificate or a known adversarial image decides, so both come first: a minimal-norm attack, at a
  hundredth of the protocol's cost, brings b close to the truth at once and leaves a single run for most images.

The images closest to being broken go first: those whose b lies least above their eps, by b / eps, then those of unknown b, by clean
margin. They are the likeliest to break, which is cheap to find and lowers the upper end of the interval [certified, not broken]; so
the result at any moment is close to the best possible for the time spent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from robustbench_rkhs.runtime.counter_rng import mix

FIRST = 8
"""Size of the first block of a cheap attack, after which the remaining time is estimated."""


@dataclass(frozen=True)
class Known:
    """What is known about each image, by position."""

    right: Bool[np.ndarray, " images"]
    """Classified correctly without an attack; the other images need no attack."""
    certified: Float[np.ndarray, " images"]
    """Largest proved radius; 0 or less where nothing is proved."""
    broken: Float[np.ndarray, " images"]
    """Distance of the nearest adversarial image; inf where none is known."""
    survived: Float[np.ndarray, " images"]
    """Largest budget at which the image survived the whole protocol; -inf where none."""

    def open(self, eps: float) -> Bool[np.ndarray, " images"]:
        """Which images are undecided at eps: correctly classified, certified < eps < broken, and survived < eps."""
        floor = np.maximum(self.certified, 0)
        result: np.ndarray = self.right & (floor < eps) & (eps < self.broken) & (self.survived < eps)
        return result


def next_eps(epsilons: Sequence[float], known: Known) -> Float[np.ndarray, " images"]:
    """The eps at which each image is attacked next: the largest undecided one; NaN where every eps is decided."""
    chosen = np.full(len(known.right), np.nan)
    for eps in sorted(set(epsilons)):
        chosen[known.open(eps)] = eps
    return chosen


def order(
    eps: Float[np.ndarray, " images"], known: Known, margin: Float[np.ndarray, " images"], by_eps: bool = False
) -> Int[np.ndarray, " some"]:
    """Positions of the images with an eps to attack (not NaN), the closest to being broken first.

    `margin`: of the clean logits, used where no adversarial image is known. `by_eps`: the largest eps first, then as above (for
    attacks that take one eps per call). Ties are ordered by position, so that the order depends on these arguments alone.
    """
    there = np.flatnonzero(~np.isnan(eps))
    reach = known.broken[there] / eps[there]  # above 1; inf where no adversarial image is known
    keys = [there, margin[there], reach]
    return there[np.lexsort([*keys, -eps[there]] if by_eps else keys)]


def blocks(order: Int[np.ndarray, " some"], size: int, first: int | None = None) -> Iterator[Int[np.ndarray, " block"]]:
    """The ordered positions in blocks of `size`; the first block has `first` images, if given."""
    start, length = 0, min(first or size, size)
    while start < len(order):
        yield order[start : start + length]
        start, length = start + length, size


def sample(pairs: Sequence[tuple[int, float]], keys: Int[np.ndarray, " images"], seed: int, count: int) -> list[tuple[int, float]]:
    """`count` random pairs (position, eps), drawn with seed (seed, the image's key, eps).

    The draw of a pair does not depend on the other pairs or their order. A second pair of an image is taken only once every image
    has one.
    """
    drawn = sorted((mix(seed, int(keys[place]), int(np.float64(eps).view(np.int64))), place, eps) for place, eps in pairs)
    seen: dict[int, int] = {}
    ranked = []
    for draw, place, eps in drawn:
        seen[place] = seen.get(place, -1) + 1
        ranked.append((seen[place], draw, place, eps))
    return [(place, eps) for _, _, place, eps in sorted(ranked)[:count]]
