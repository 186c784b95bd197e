"""A linear lower bound of a kink less a parabola of its output, from an interval, a ball and a parabola of its input."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_rkhs.relaxations.lagrangian import Ball, Tilt
from robustbench_rkhs.relaxations.planes import Bent
from robustbench_rkhs.relaxations.rounding import UNIT


class Bowl(NamedTuple):
    """Curvatures at a kink, value by value."""

    after: Float[Tensor, "batch rows *shape"]
    """D >= 0: what is subtracted behind it."""
    before: Float[Tensor, "batch rows *shape"]
    """L > D: what is left to be repaid before it."""


def parabola(
    c: Float[Tensor, "batch rows *shape"],
    left: float,
    lower: Float[Tensor, "batch *shape"],
    upper: Float[Tensor, "batch *shape"],
    ball: Ball,
    tilt: Tilt,
    bowl: Bowl,
    proved: bool,
) -> Bent:
    r"""A lower bound of c' f(x) - sum_i D_i (f(x_i) - y_0i)^2 / 2, f(x) = max(x, left x), over { l <= x <= u, ||x - x0|| <= rho }.

    With y_0 = f(x0), for any row r, multiplier m >= 0 and curvatures L >= D

    .. math:: c^\top f(x) - \tfrac12 \sum_i D_i (f(x_i) - y_{0i})^2 \ge r^\top x + \sum_i p_i - \tfrac{m}{2} \rho^2
              - \tfrac12 \sum_i L_i (x_i - x_{0i})^2, \\
              p_i = \min_{l_i \le z \le u_i} c_i f(z) - \tfrac{D_i}{2} (f(z) - y_{0i})^2 - r_i z
              + \tfrac{L_i + m}{2} (z - x_{0i})^2

    as in `lagrangian`, which is D = L = 0. The last sum is left to the layers before (`couplings`). On each side of zero the
    function is a convex parabola: its minimum is at the root of its derivative, clipped to the side.

    Rounding. L + m is rounded down. The derivative at the computed root is at most 32 u (|c| + |r| + (D + L + m) (|z| + |x0| +
    |y0|)), u = 2^-53; a side is convex, so p_i is at most that times the interval's width too high. Each term errs by 8 u, sums
    by n u.
    """
    r = (left + (1 - left) * tilt.slope) * c
    m = tilt.multiplier.reshape(*tilt.multiplier.shape, *[1] * (c.dim() - 2))
    center, low, high = ball.center[:, None], lower[:, None], upper[:, None]
    bent_center = torch.where(center > 0, center, left * center)
    total = (bowl.before + m) * (1 - 4 * UNIT)
    with torch.no_grad():
        away = r - c + bowl.after * (center - bent_center)
        back = r - left * c + left * bowl.after * (left * center - bent_center)
        above, below = center + away / (total - bowl.after), center + back / (total - left * left * bowl.after)
        above = torch.minimum(torch.maximum(above, low.clamp_min(0)), high.clamp_min(0))
        below = torch.minimum(torch.maximum(below, low.clamp_max(0)), high.clamp_max(0))

    def value(z: Tensor, bent: Tensor) -> Tensor:
        drop = bowl.after / 2 * (bent - bent_center).square()
        return c * bent - drop - r * z + total / 2 * (z - center).square()

    with torch.no_grad():
        right = ((value(above, above) <= value(below, left * below)) | (low >= 0)) & (high > 0)  # sides that are in [l, u]
        z = torch.where(right, above, below)
        bent = torch.where(right, above, left * below)
    parts = value(z, bent)
    balls = torch.where(tilt.multiplier > 0, tilt.multiplier / 2 * ball.radius[:, None].square(), 0.0)
    if not proved:
        return Bent(r, parts, balls, None)
    with torch.no_grad():
        most = torch.maximum(above.abs(), below.abs())
        far = most + center.abs() + bent_center.abs()
        curved = bowl.after + total
        size = (c.abs() + r.abs()) * most + curved * far.square()
        slope = 32 * UNIT * (c.abs() + r.abs() + curved * far)
        count = c[0, 0].numel()
        errors = 4 * UNIT * (count + 64) * (size.flatten(2).sum(2) + balls) + (slope * (high - low)).flatten(2).sum(2)
    return Bent(r, parts, balls, errors)
