"""Quadratic terms that couple the layers of a chain: bounds of rows over an l2 ball in which no layer's ball stands alone."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.lipschitz.verified_norm import gamma, norm
from robustbench_rkhs.relaxations.full_crown import proved_trace
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.linear_bounds import chain_back
from robustbench_rkhs.relaxations.links import Link
from robustbench_rkhs.relaxations.parabola import Bowl, parabola
from robustbench_rkhs.relaxations.planes import Bent
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rounding import LEAST, UNIT
from robustbench_rkhs.relaxations.rows import Rows, Tilts, bending, kinks_of
from robustbench_rkhs.runtime.clock import ask

SPARE = 2.0**-30
"""Relative share by which curvatures are raised for the rounding of the centres and of the matrices."""
ROUNDS = 60
"""Steps towards the worst point of the ball; any point gives a sound bound."""
LARGE, SMALL = 1e25, 1e-150
"""Numbers beyond LARGE are left to other bounds: with smaller ones, what underflows stays below SMALL."""
NARROWER = 5
"""Steps towards the multiplier of the ball where the box cuts it."""
WAYS = 4
"""Vectors of a power iteration."""


class Coupling(NamedTuple):
    """What the quadratic terms are free to choose at a kink; any choice is sound."""

    push: Float[Tensor, "batch n"]
    """E >= 0: curvature that the kink's inputs get besides what comes from behind."""
    scale: Float[Tensor, "batch n"]
    """P > 0: relative sizes of the curvatures of the kink's outputs."""


Couplings = dict[str, Coupling]
"""By the path of the kink."""


class Chain(NamedTuple):
    """A chain network's links, and how far the computed centres at an image may be off."""

    links: list[Link]
    off: dict[str, Float64[Tensor, " n"]]
    """By path of the kink: each value's rounding, for every image."""


def chain_of(model: nn.Module, x: Float64[Tensor, "images *image"], matrices: list[Link]) -> Chain:
    """The chain around these images. `matrices`: its links (`links`)."""
    around = kinks_of(proved_trace(model, Region(x, torch.zeros_like(x)), False).steps)
    return Chain(matrices, {step.path: step.before.radius.flatten(1).amax(0) for step in around})


class Curved(NamedTuple):
    """Proved curvatures at each kink, for each row."""

    bowls: dict[str, tuple[Tensor, Tensor]]
    """D and L (batch, n) by path."""
    least: Tensor
    """mu I - A >= 0 from this mu on."""
    cost: Tensor
    """What the rounding of the centres costs."""

    def of(self, which: Int[Tensor, " some"]) -> "Curved":
        """Those of some rows."""
        bowls = {path: (after[which], before[which]) for path, (after, before) in self.bowls.items()}
        return Curved(bowls, self.least[which], self.cost[which])

    def single(self) -> "Curved":
        """In float32."""
        bowls = {path: (after.float(), before.float()) for path, (after, before) in self.bowls.items()}
        return Curved(bowls, self.least.float(), self.cost.float())


def bounded(rows: Rows, tilts: Tilts, curved: Curved, chain: Chain) -> Float64[Tensor, " batch"]:
    r"""Proved lower bounds of rows over { ||z - z0|| <= eps } (or its part in the pixel box) with quadratic terms, in float64.

    With h_k = W_k x_(k-1) + b_k, x_k = f_k(h_k), x_0 = z, any diagonal E_k >= 0, P_k > 0, and D_K = 0 behind the last kink,

    .. math:: L_k = D_k + E_k, \qquad D_{k-1} = t_k P_{k-1}^2 \succeq W_k^\top L_k W_k, \qquad
              t_k = \lVert L_k^{1/2} W_k P_{k-1}^{-1} \rVert_2^2

    the parabola of `parabola` that is left before kink k is at most the one that is subtracted behind kink k - 1:
    (h_k - h_k0)' L_k (h_k - h_k0) = (x_(k-1) - x_(k-1)0)' W_k' L_k W_k (x_(k-1) - x_(k-1)0). What is left at the image is

    .. math:: \min_{\lVert d \rVert \le \varepsilon} a^\top d - \tfrac12 d^\top A d, \qquad A = W_1^\top L_1 W_1

    For any d and mu with mu I - A >= 0, and w = -a - (mu I - A) d, weak duality bounds it from below by

    .. math:: - \tfrac{\mu}{2} \varepsilon^2 - \tfrac12 d^\top (\mu I - A) d - \max_{d'} w^\top d'

    (d' in the box or the ball; -(d' - d)' (mu I - A) (d' - d) <= 0). Balls of single layers (`lagrangian`) stay, too: E = 0 is
    that bound. t_k and the least mu are proved norms (Cholesky, `curvatures`). Ours; compare LipSDP (arXiv 1906.04893) for
    diagonal multipliers.
    Rounding: centres off by delta cost (1 + 1/s) delta' L delta / 2, and t_k, A grow by 1 + s, s = 2^-30.
    """
    assert rows.steps[0].before.round
    begun = rows.lines._replace(errors=torch.zeros_like(rows.lines.offsets))
    moved = chain_back(bending(rows.steps, bends(rows, tilts, curved.bowls, True)), begun)
    assert moved.errors is not None
    first = chain.links[0]
    region, slopes = rows.steps[0].before, moved.slopes.flatten(2)[:, 0]
    dropped = _drop(slopes, region, first.matrix, curved.bowls[first.path][1], curved.least)
    center = region.center.flatten(1)
    middle = (slopes * center).sum(1) + moved.offsets[:, 0]
    sums = (slopes * center).abs().sum(1) + moved.offsets[:, 0].abs()
    lost = 2 * moved.errors[:, 0] + 4 * UNIT * (center.shape[1] + 64) * sums + curved.cost + LEAST
    value = middle - dropped - lost
    value = value - 8 * UNIT * (middle.abs() + dropped.abs() + lost) - SMALL
    return value.nan_to_num(nan=-math.inf) if _ordinary(rows, tilts, curved, chain) else torch.full_like(value, -math.inf)


def _ordinary(rows: Rows, tilts: Tilts, curved: Curved, chain: Chain) -> bool:
    """Whether no number is so large that what underflows could grow beyond SMALL."""
    numbers = [rows.lines.slopes, rows.lines.offsets, rows.steps[0].before.center, rows.steps[0].before.radius]
    numbers += [link.matrix for link in chain.links] + [one for both in curved.bowls.values() for one in both]
    numbers += [one for tilt in tilts.values() for one in tilt]
    numbers += [
        one for step in kinks_of(rows.steps) for one in (step.before.center, step.before.radius, rows.balls[step.path].center)
    ]
    return all(bool((one.abs() < LARGE).all()) for one in numbers)


def guessed(
    rows: Rows, tilts: Tilts, curved: Curved, chain: Chain, shares: dict[str, Tensor] | None = None
) -> Float64[Tensor, " batch"]:
    """Nearly `bounded`, without rounding. `shares`: filled with each coordinate's share of the constant, by path of the kink."""
    moved = chain_back(bending(rows.steps, bends(rows, tilts, curved.bowls, False, shares)), rows.lines._replace(errors=None))
    first, region = chain.links[0], rows.steps[0].before
    a, center, eps = moved.slopes.flatten(2)[:, 0], region.center.flatten(1), region.radius.flatten(1)[:, 0]
    low, high = sides(region)
    curvature = curved.bowls[first.path][1]
    d, mu = furthest(a, first.matrix, curvature, low, high, eps, curved.least, rounds=20)
    spare = mu / 2 * (eps.square() - d.square().sum(1))
    value: Tensor = (a * (center + d)).sum(1) + moved.offsets[:, 0] - (curvature * (d @ first.matrix.T).square()).sum(1) / 2 - spare
    return value


def sides(region: Region) -> tuple[Tensor, Tensor]:
    """How far each pixel may move within the box, if the region is cut by it."""
    center = region.center.flatten(1)
    if not region.unit:
        return torch.full_like(center, -math.inf), torch.full_like(center, math.inf)
    return (-center).clamp_max(0), ((1 - center) * (1 + 4 * UNIT)).clamp_min(0)


def bends(
    rows: Rows, tilts: Tilts, bowls: dict[str, tuple[Tensor, Tensor]], proved: bool, shares: dict[str, Tensor] | None = None
) -> Callable[[Step], Callable[[Tensor, float], Bent]]:
    """`parabola` at every kink, with curvatures by path."""

    def bend(step: Step) -> Callable[[Tensor, float], Bent]:
        def bound(c: Tensor, left: float) -> Bent:
            region, tilt = step.before, tilts[step.path]
            shape = (len(c), 1, *c.shape[2:])
            bowl = Bowl(*(one.view(shape) for one in bowls[step.path]))
            found = parabola(c, left, region.lower, region.upper, rows.balls[step.path], tilt, bowl, proved)
            if shares is not None:
                shares[step.path] = found.parts
            return found

        return bound

    return bend


def curvatures(couplings: Couplings, chain: Chain) -> Curved:
    """Curvatures with proved norms, from the last kink back; not finite where they overflow, which `bounded` leaves alone."""
    bowls: dict[str, tuple[Tensor, Tensor]] = {}
    last = couplings[chain.links[-1].path].push
    after, cost = torch.zeros_like(last), last.new_zeros(len(last))
    for number in range(len(chain.links) - 1, -1, -1):
        link = chain.links[number]
        before = after * (1 + 2.0**-24) + couplings[link.path].push
        bowls[link.path] = after, before
        cost = cost + (before * (4 * chain.off[link.path]).square()).sum(1) / SPARE * 1.01
        scale = couplings[chain.links[number - 1].path].scale if number else torch.ones_like(link.matrix[:1])
        sizes = [_norm(one.sqrt()[:, None] * link.matrix / p) for one, p in zip(before, scale.expand(len(before), -1), strict=True)]
        square = before.new_tensor(sizes).square() * (1 + 4 * SPARE) + LEAST
        after = square[:, None] * scale.square() * (1 + 8 * UNIT)
    return Curved(bowls, square, cost)


def _norm(matrix: Tensor) -> float:
    return norm(matrix[None]) if bool(matrix.isfinite().all()) else math.inf


def _drop(a: Tensor, region: Region, matrix: Tensor, curvature: Tensor, least: Tensor) -> Tensor:
    """Upper bounds of max -a' d + d' A d / 2 over the ball, in the box if the region is cut by it."""
    center, eps = region.center.flatten(1), region.radius.flatten(1)[:, 0]
    low, high = sides(region)
    raised = curvature * (1 + 2 * SPARE)
    d, mu = furthest(a, matrix, raised, low, high, eps, least)
    y = d @ matrix.T
    pulled = (raised * y) @ matrix
    w = -a - mu[:, None] * d + pulled
    frobenius = matrix.norm()
    unit = gamma(16 * (sum(matrix.shape) + 64))
    length = torch.maximum(d.norm(dim=1), eps)
    wrong = unit * (a.norm(dim=1) + mu * length + raised.amax(1) * frobenius**2 * length)
    reached = w.norm(dim=1) * eps
    if region.unit:
        reached = torch.minimum(reached, torch.maximum(w * low, w * high).sum(1))
    terms = mu * eps.square() + mu * length.square() + (raised * y.square()).sum(1)
    value = mu / 2 * eps.square() + (mu * d.square().sum(1) - (raised * y.square()).sum(1)) / 2 + reached
    rough = unit * (terms + (w.abs() * center.abs().clamp_min(1)).sum(1) + raised.amax(1) * (frobenius * length).square())
    found: Tensor = value + wrong * (eps + length) + rough
    return found


def furthest(
    a: Tensor,
    matrix: Tensor,
    curvature: Tensor,
    low: Tensor,
    high: Tensor,
    eps: Tensor,
    least: Tensor,
    begun: Tensor | None = None,
    rounds: int = ROUNDS,
) -> tuple[Tensor, Tensor]:
    """Nearly the d with the largest -a' d + d' A d / 2 in the ball and the box, and its multiplier, at least `least`."""
    with torch.no_grad():
        d = torch.zeros_like(a) if begun is None else begun
        mu = least
        for _ in range(rounds):
            ask()
            s = ((d @ matrix.T) * curvature) @ matrix - a
            mu = torch.maximum(_multiplier(s, low, high, eps), least)
            d = torch.minimum(torch.maximum(s / mu[:, None], low), high)
        return d, mu


def closest(a: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Tensor:
    """Nearly the d with the least a' d in the ball and the box."""
    mu = _multiplier(-a, low, high, eps)
    return torch.minimum(torch.maximum(-a / mu.clamp_min(SMALL)[:, None], low), high)


def _multiplier(s: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Tensor:
    """Nearly the mu at which s / mu, clipped to the box, has length eps, and not less: what is not clipped has the length left."""
    mu: Tensor = s.norm(dim=1) / eps.clamp_min(1e-30)
    if bool(low.isinf().all()):
        return mu
    for _ in range(NARROWER):
        d = s / mu.clamp_min(1e-30)[:, None]
        clipped = torch.minimum(torch.maximum(d, low), high)
        free = clipped == d
        rest = (eps.square() - torch.where(free, 0.0, clipped).square().sum(1)).clamp_min(0)
        mu = torch.where(rest > 0, torch.where(free, s, 0.0).norm(dim=1) / rest.sqrt(), mu)
    return mu
