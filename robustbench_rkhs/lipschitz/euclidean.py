"""Euclidean lengths that no square under- or overflows on its way to."""

import torch
from torch import Tensor

UNIT, TINY = 2.0**-53, 1e-290


def lengths(vectors: Tensor) -> Tensor:
    r"""The l2 length along the last dimension, rounded up: an upper bound in real arithmetic for float64 vectors.

    .. math:: \lVert v \rVert_2 = p \, \lVert v / p \rVert_2, \qquad p = \max_i |v_i|

    The square of a number below 1e-162 is 0 in float64, so that `Tensor.norm` may return 0 for a vector that is not. Here the
    largest square is 1; one that underflows is below 1e-300 of it. n terms err by at most n + 4 units of roundoff, twice that
    is added. Zero for zeros alone, at least 1e-290 for others; infinite or NaN as the entries. Differentiable, p as a constant.
    """
    count = vectors.shape[-1]
    if not count:
        return vectors.sum(-1)
    peak = vectors.detach().abs().amax(-1)
    by = torch.where((peak > 0) & peak.isfinite(), peak, 1.0)
    unit = UNIT if vectors.dtype == torch.float64 else 2.0**-24
    found = (vectors / by[..., None]).norm(dim=-1) * by * (1 + 2 * (count + 8) * unit)
    least = TINY if vectors.dtype == torch.float64 else 0.0
    return torch.where(peak == 0, found, found.clamp_min(least))


def length(values: Tensor) -> float:
    """The l2 length of all entries together, rounded up as `lengths`."""
    return float(lengths(values.detach().flatten()).item())
