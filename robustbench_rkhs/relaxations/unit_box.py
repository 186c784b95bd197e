"""The least value of a linear function over an l2 ball that is cut by the pixel box."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_rkhs.lipschitz.euclidean import lengths
from robustbench_rkhs.relaxations.rounding import UNIT

HALVINGS = 24
"""Halvings of the logarithm of the multiplier; any multiplier is sound."""
SMALLEST = 2.0**-30
"""The smallest multiplier that is tried, relative to the one at which the box does not matter."""


def drop(
    slopes: Float[Tensor, "batch rows n"], center: Float[Tensor, "batch n"], radius: Float[Tensor, " batch"], proved: bool
) -> Float[Tensor, "batch rows"]:
    r"""An upper bound of how far s' z falls below s' c over { ||z - c||_2 <= eps, 0 <= z <= 1 }.

    For any multiplier m > 0, by weak duality,

    .. math:: s^\top (z - c) \ge \sum_i \min_{-c_i \le d \le 1 - c_i} \big( s_i d + \tfrac{m}{2} d^2 \big)
              - \tfrac{m}{2} \varepsilon^2

    with the minimum at d = -s_i / m clipped. The bound is concave in m; its best m lies below ||s|| / eps, where no d is
    longer than eps, and is found by bisection on the length of d. A pixel outside [0, 1] counts as an end of its interval.
    Rounding (`proved`): m is what is computed. The ends of the interval are rounded outwards. d is off by 2 u |s_i| / m
    before it is clipped, u = 2^-53, so its parabola lies at most 2 m (2 u |s_i| / m)^2 above its minimum; sums add n u of
    all terms.
    Cost: a pass over the slopes for each halving.
    """
    low, high = (-center).clamp_max(0)[:, None], ((1 - center) * (1 + 4 * UNIT)).clamp_min(0)[:, None]
    eps = radius[:, None]
    with torch.no_grad():
        smallest = torch.finfo(eps.dtype).tiny ** 0.5  # a ball of radius 0 too has a finite multiplier
        top = lengths(slopes) / eps.clamp_min(smallest)
        less, more = torch.full_like(top, SMALLEST).log2(), torch.zeros_like(top)
        safe = torch.where(top > 0, top, 1.0)
        for _ in range(HALVINGS):
            middle = (less + more) / 2
            d = torch.minimum(torch.maximum(-slopes / (safe * middle.exp2())[..., None], low), high)
            longer = lengths(d) > eps
            less, more = torch.where(longer, middle, less), torch.where(longer, more, middle)
        m = safe * more.exp2()
        d = torch.minimum(torch.maximum(-slopes / m[..., None], low), high)
    parts, paid = slopes * d, m / 2 * eps * eps  # in this order: eps^2 alone may underflow
    value = -(parts + m[..., None] / 2 * d * d).sum(2) + paid
    if proved:
        size = (parts.abs() + m[..., None] * d * d).sum(2) + paid
        missed = 8 * UNIT**2 * (slopes * (slopes / m[..., None])).sum(2)
        value = value + 4 * UNIT * (slopes.shape[2] + 64) * size + missed
    return value
