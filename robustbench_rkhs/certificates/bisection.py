"""The largest radius that bounds over a ball prove: those asked for in turn, then halving."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

LARGEST = 1e4
"""No larger radius is looked for, in pixels of [0, 1]."""
TRIES = 60
"""Balls tried for one image at most."""


def largest(
    proves: Callable[[Tensor, Tensor], Tensor],
    zero: Float64[Tensor, " batch"],
    epsilons: Sequence[float],
    search: bool,
    tolerance: float,
) -> Float64[Tensor, " batch"]:
    """For each image the largest radius that `proves` (positions, radii of balls) -> radii has proved; 0 where none.

    `zero`: a zero an image. `search`: beyond the epsilons asked for, up to a relative gap of `tolerance`.
    """
    everyone, best = torch.arange(len(zero), device=zero.device), zero.clone()
    right = proves(everyone, zero + 1e-9)
    open_ = everyone[right > 0]
    best[open_] = right[open_] if search else 0.0
    asked = sorted({float(eps) for eps in epsilons if 0 < eps < float("inf")})
    failed = torch.full_like(zero, torch.inf)
    for eps in asked:  # where a ball was not proved, no larger one is tried
        going = open_[failed[open_].isinf() & (best[open_] < eps)]
        if len(going):
            radii = best.new_full((len(going),), eps)
            reached = proves(going, radii)
            best[going] = torch.maximum(best[going], reached)
            failed[going] = torch.where(reached < radii, radii, torch.inf)
    if not search:
        return best
    for _ in range(TRIES):
        failed = failed.masked_fill(failed <= best, torch.inf)
        going = open_[(best[open_] < LARGEST) & (failed[open_] > best[open_] * (1 + tolerance))]
        if not len(going):
            break
        low, high = best[going], failed[going]
        # far apart: by factors; near: halfway
        between = torch.where(high > 4 * low, (low * high).sqrt(), (low + high) / 2)
        middle = torch.where(high.isinf(), (4 * low).clamp_min(1e-3), between)
        reached = proves(going, middle)
        best[going] = torch.maximum(low, reached)
        failed[going] = torch.where(reached < middle, torch.minimum(high, middle), high)
    return best
