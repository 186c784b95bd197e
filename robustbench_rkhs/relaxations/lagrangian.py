"""One linear lower bound of a kink from a ball and intervals together: the Lagrangian of both."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_rkhs.relaxations.planes import Bent
from robustbench_rkhs.relaxations.rounding import UNIT


class Ball(NamedTuple):
    """A proved l2 ball that holds the inputs x of a kink for every image of the region."""

    center: Float[Tensor, "batch *shape"]
    """The inputs at the image itself, computed."""
    radius: Float[Tensor, " batch"]
    """Includes the rounding of the centre."""


class Tilt(NamedTuple):
    """What a bound at a kink is free to choose; any choice is sound."""

    slope: Float[Tensor, "batch rows *shape"]
    """New slopes relative to the old ones, from the left side of the kink (0) to the right (1), and beyond."""
    multiplier: Float[Tensor, "batch rows"]
    """Multiplier of the ball, at least 0."""


def lagrangian(
    c: Float[Tensor, "batch rows *shape"],
    left: float,
    lower: Float[Tensor, "batch *shape"],
    upper: Float[Tensor, "batch *shape"],
    ball: Ball,
    tilt: Tilt,
    proved: bool,
) -> Bent:
    r"""A lower bound of c' f(x), f(x) = max(x, left x) with left in [0, 1], over { l <= x <= u, ||x - x0|| <= rho }.

    For any row r and any multiplier m >= 0,

    .. math:: c^\top f(x) \ge r^\top x + \sum_i p_i - \tfrac{m}{2} \rho^2, \qquad
              p_i = \min_{l_i \le z \le u_i} \; c_i f(z) - r_i z + \tfrac{m}{2} (z - x_{0i})^2

    Proof: m (rho^2 - ||x - x0||^2) / 2 >= 0 on the ball; subtract it from c' f(x) - r' x and minimise coordinate by coordinate.
    So every (r, m) is sound (weak duality). With m = 0 this is the bound of CROWN with free slopes, with l = -inf, u = inf that
    of SDP-CROWN (arXiv 2506.06665, theorem 4.1) written as its Lagrangian. Ours: both at once, slopes that stay free where the
    sign of x is known, also beyond [0, 1], and no multiplier besides for a split (an interval cut at 0).

    p_i in closed form: on each side of 0 the function is a parabola with linear part a = c_i - r_i (right) or left c_i - r_i
    (left), least at z = x0 - a / m clipped to the side's part of [l, u]. Where a side is not in [l, u], the clipped point is 0 or
    the nearest end, which can only lower p_i. The gradient treats the minimiser as fixed (envelope theorem).

    Rounding. r is what is computed, so it has none. Let z~ be the computed point before clipping: |z~ - z*| <= d with
    d = 5 u ((|c| + |r|) / m + |x0|), u = 2^-53 (two roundings of a, of the quotient and of the difference). Clipping moves two
    points no further apart, and a parabola of curvature m at a point within d of its constrained minimum is at most 2 m d^2
    above it (at an end of the interval that only one of both reaches, its slope is at most m d). So p_i is computed at most
    2 m d^2 <= 128 u^2 ((|c| + |r|)^2 / m + m x0^2) too high, besides 8 u of each of its three terms; sums add n u of all terms.
    The side is chosen by values that round, too: where the wrong one is, it lies above the right one by no more than both rounded.
    So the terms at the minimisers of both sides are charged, the larger of the two.
    """
    slope = left + (1 - left) * tilt.slope
    r = slope * c
    m = tilt.multiplier.reshape(*tilt.multiplier.shape, *[1] * (c.dim() - 2))
    center, low, high = ball.center[:, None], lower[:, None], upper[:, None]
    with torch.no_grad():
        above = _least(c - r, m, center, low.clamp_min(0), high.clamp_min(0))
        below = _least(left * c - r, m, center, low.clamp_max(0), high.clamp_max(0))
        right = (c - r) * above + _bowl(m, above - center) <= (left * c - r) * below + _bowl(m, below - center)
        z = torch.where(right, above, below)
        bent = torch.where(z > 0, z, left * z)
    parts = c * bent - r * z + _bowl(m, z - center)
    balls = torch.where(tilt.multiplier > 0, _bowl(tilt.multiplier, ball.radius[:, None]), 0.0)
    return Bent(r, parts, balls, _errors(c, r, m, left, above, below, center, balls) if proved else None)


def _bowl(m: Tensor, z: Tensor) -> Tensor:
    """m z^2 / 2, in an order in which z^2 alone neither under- nor overflows."""
    return m / 2 * z * z


def _least(linear: Tensor, m: Tensor, center: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The minimiser of linear z + m (z - center)^2 / 2 on [low, high]; at an end where m is 0."""
    moved = torch.where(linear == 0, 0.0, linear / m)
    return torch.minimum(torch.maximum(center - moved, low), high)


def _errors(c: Tensor, r: Tensor, m: Tensor, left: float, above: Tensor, below: Tensor, center: Tensor, balls: Tensor) -> Tensor:
    with torch.no_grad():
        count, square = math.prod(c.shape[2:]), c.abs() + r.abs()
        size = torch.maximum(_size(c, r, m, above, center), _size(left * c, r, m, below, center))
        missed = torch.where(m > 0, square * (square / m), 0.0) + m * center * center
        return 4 * UNIT * (count + 64) * (size.flatten(2).sum(2) + balls) + 128 * UNIT**2 * missed.flatten(2).sum(2)


def _size(c: Tensor, r: Tensor, m: Tensor, z: Tensor, center: Tensor) -> Tensor:
    return (c * z).abs() + (r * z).abs() + 2 * _bowl(m, z - center)


def first_multiplier(
    c: Float[Tensor, "batch rows *shape"],
    left: float,
    lower: Float[Tensor, "batch *shape"],
    upper: Float[Tensor, "batch *shape"],
    ball: Ball,
    slope: Float[Tensor, "batch rows *shape"],
) -> Float[Tensor, "batch rows"]:
    """The best multiplier for these slopes among powers of two about |c| / rho; the bound is concave in it. Zero where rho is not
    finite."""
    rho = ball.radius[:, None]
    base = torch.where(rho.isfinite() & (rho > 0), c.flatten(2).norm(dim=2) / rho, 0.0)
    best, at = torch.full_like(base, -torch.inf), base
    for power in range(-9, 4):
        found = lagrangian(c, left, lower, upper, ball, Tilt(slope, base * 2.0**power), False)
        value = found.parts.flatten(2).sum(2) - found.balls
        at = torch.where(value > best, base * 2.0**power, at)
        best = torch.maximum(best, value)
    return at
