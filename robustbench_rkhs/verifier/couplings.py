"""Re-check of linear bounds from l2 balls with quadratic terms that couple the layers of a chain."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .activations import Activation
from .backward import Moved
from .chain import Chain, dense
from .lagrangian import Rows, Witness
from .liplt import Path
from .norms import TINY, UNIT, Unproved, frobenius, norm
from .operations import Operation, expected, lengths, size
from .pixel_box import multiplier, sides

SPARE = 2.0**-30
"""Relative share by which curvatures are raised for what is off in centres and matrices."""
ROUNDS, SETTLED = 200, 1e-6
"""Steps towards the worst point of the ball, at most, and where they end; any point gives a sound bound."""
LARGE, SMALL = 1e25, 1e-30
"""Numbers beyond LARGE and curvatures below SMALL prove nothing: so what underflows stays below UNDER."""
UNDER = 1e-150
LARGEST = 2**24
"""Most numbers of a matrix."""


class Link(NamedTuple):
    """The affine run between two kinks, or between the image and the first."""

    path: Path
    """Of the kink at its end."""
    first: int
    """Position of its first operation."""
    run: list[Operation]
    matrix: np.ndarray
    """(outputs, inputs)"""
    off: float
    """Bound of its rounding, Frobenius norm."""


def links(chain: Chain) -> list[Link]:
    """The links of a chain. Raises Malformed where it is none."""
    found, run = list[Link](), list[Operation]()
    for at, operation in enumerate(chain):
        if operation.affine:
            run.append(operation)
            continue
        expected(isinstance(operation, Activation), "couplings need a chain of affine operations and kinks")
        fits = bool(run) and size(run[0].inputs) * size(operation.inputs) <= LARGEST
        expected(fits, "couplings need an affine operation, of limited size, before each kink")
        found.append(Link((at,), at - len(run), run, *dense(run)))
        run = []
    expected(bool(found), "couplings need a kink")
    return found


@dataclass
class CoupledRows(Rows):
    """Rows of a chain with curvatures at its kinks."""

    pushes: dict[Path, np.ndarray] = field(default_factory=dict)
    """For each kink (rows, values), above zero: curvature that its inputs get besides what comes from behind."""
    scales: dict[Path, np.ndarray] = field(default_factory=dict)
    """For each kink but the last (rows, values), above zero: relative sizes of the curvatures of its outputs."""
    norms: dict[Path, np.ndarray] = field(default_factory=dict)
    """For each kink (rows,): claimed norms of its link; a starting point, never trusted."""
    links: list[Link] = field(default_factory=list)
    shared: np.ndarray | None = None
    """Which curvatures each row has, where several have the same; None: each its own."""
    bowls: dict[Path, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Curvatures behind and before each kink, proved here."""
    least: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The largest curvature at the image."""

    def bounds(self, rows: np.ndarray) -> np.ndarray:
        r"""Lower bounds of rows over the balls, in real arithmetic. With x_k = f_k(h_k), h_k = W_k x_(k-1) + b_k, computed
        centres u_k of x_k and v_k of h_k, any E_k, P_k > 0, and D = 0 behind the last kink,

        .. math:: L_k = D_k + E_k, \qquad
                  D_{k-1} \ge (1 + s) \lVert L_k^{1/2} W_k P_{k-1}^{-1} \rVert^2 P_{k-1}^2 \succeq (1 + s) W_k^\top L_k W_k

        so that (h_k - v_k)' L_k (h_k - v_k) <= (x_(k-1) - u_(k-1))' D_(k-1) (x_(k-1) - u_(k-1)) + (1 + 1/s) e' L_k e, where
        e = W_k u_(k-1) + b_k - v_k is rounding. The bound at a kink is that of `Rows` with one parabola on either side (`_kink`).
        """
        with np.errstate(all="ignore"):  # what is not finite proves nothing
            found = super().bounds(rows)
            numbers = [rows, self.x, *self.slopes.values(), *self.multipliers.values(), *self.pushes.values()]
            numbers += [*self.scales.values(), *(link.matrix for link in self.links)]
            numbers += [one for both in self.bowls.values() for one in both]
            numbers += [self.inputs[link.path][0] for link in self.links]
            few = [*self.pushes.values(), *self.scales.values(), *self.multipliers.values()]
            fine = all(np.abs(one).max(initial=0.0) < LARGE for one in numbers) and all(one.min(initial=1.0) > SMALL for one in few)
            value: np.ndarray = np.nan_to_num(found if fine else np.full_like(found, -np.inf), nan=-np.inf)
            if self.intervals and not bool((value > 0).all()):  # on a small part curvatures may cost more than they bring
                alone = Rows(self.chain, self.x, self.radius, self.slopes, self.multipliers, self.reach, unit=self.unit)
                alone.intervals = self.intervals
                value = np.fmax(value, alone.bounds(rows))
        return value

    def begin(self) -> None:
        super().begin()
        self.links = self.links or links(self.chain)
        after, self.bowls = np.zeros_like(self.pushes[self.links[-1].path]), {}
        for number in range(len(self.links) - 1, -1, -1):
            link = self.links[number]
            before = after * (1 + 2.0**-24) + self.pushes[link.path]
            self.bowls[link.path] = after, before
            scale = self.scales[self.links[number - 1].path] if number else np.ones((len(before), link.matrix.shape[1]))
            sizes = np.array(
                [self._norm(link, before[at], scale[at], float(self.norms[link.path][at])) for at in range(len(before))]
            )
            square = sizes**2 * (1 + SPARE) * (1 + 16 * UNIT) + TINY
            after = square[:, None] * scale**2 * (1 + 8 * UNIT)
        each = slice(None) if self.shared is None else self.shared
        self.least = square[each]
        self.bowls = {path: (behind[each], before[each]) for path, (behind, before) in self.bowls.items()}

    def _norm(self, link: Link, before: np.ndarray, scale: np.ndarray, claim: float) -> float:
        matrix = np.sqrt(before)[:, None] * link.matrix / scale
        if not np.isfinite(matrix).all():
            return math.inf
        try:
            return norm(matrix, claim) + 8 * UNIT * frobenius(matrix)
        except Unproved:
            return math.inf

    def _kink(self, operation: Operation, c: np.ndarray, path: Path) -> Moved:
        r"""c' f(h) - D/2 |f(h) - u|^2 >= r' h + sum_i p_i - m/2 rho^2 - L/2 |h - v|^2, where p_i is the least of two convex
        parabolas, one on each side of zero. A parabola of curvature at least k on an interval is at most g^2 / (2 k) below its
        value at a point where its derivative is g, or, at an end, points outwards by all but g. So nothing depends on how the
        point was found; g is bounded by the derivative as computed, plus its rounding. Each side has its own lower bound.
        """
        assert isinstance(operation, Activation)
        left, c = operation.slopes[0], c.reshape(len(c), -1)
        link = next(one for one in self.links if one.path == path)
        m, v = self.multipliers[path][:, None], self.inputs[path][0].reshape(len(c), -1)
        u, rho = operation(self.inputs[path][0]).reshape(len(c), -1), self.ball(path)
        after, before = self.bowls[path]
        row = (left + (1 - left) * self.slopes[path]) * c
        total = (before + m) * (1 - 4 * UNIT)
        steep = np.where(total > after, (total - after) * (1 - 4 * UNIT), np.nan)

        low, high = self._interval(path, c)

        def side(alpha: float, start: np.ndarray, end: np.ndarray) -> np.ndarray:
            """From the lower end of its interval to the upper one."""
            pull = row - alpha * c + alpha * after * (alpha * v - u)
            z = np.clip(v + pull / (total - alpha * alpha * after), start, end)
            bent = alpha * z
            drop, rise = bent - u, z - v
            value = c * bent - after / 2 * drop * drop - row * z + total / 2 * rise * rise
            far, wide = np.abs(bent) + np.abs(u), np.abs(z) + np.abs(v)
            slope = alpha * c - alpha * after * drop - row + total * rise
            g = np.maximum(np.where(z > start, slope, 0), np.where(z < end, -slope, 0))
            g = g + 32 * UNIT * (np.abs(c) + np.abs(row) + after * far + total * wide)
            rough = 32 * UNIT * (np.abs(c * bent) + np.abs(row * z) + after * far * far + total * wide * wide)
            lower: np.ndarray = value - rough - g * (g / steep)
            return lower

        right, wrong = side(1.0, np.maximum(low, 0), np.maximum(high, 0)), side(left, np.minimum(low, 0), np.minimum(high, 0))
        parts = np.where(low >= 0, right, np.where(high <= 0, wrong, np.minimum(right, wrong)))
        ball = self.multipliers[path] / 2 * rho * rho
        missed = np.zeros(len(c))
        for place, part in enumerate(link.run):  # what this run's own rounding moves
            missed = part.error(self.inputs[(link.first + place,)][0], missed)
        missed = (missed + link.off * self.ball((link.first,))) * (1 + 1e-9)
        cost = (1 + 1 / SPARE) / 2 * before.max(axis=1) * missed * missed * 1.01
        value = parts.sum(1) - ball - cost
        error = 4 * (c.shape[1] + 64) * UNIT * (np.abs(parts).sum(1) + ball + cost)
        return row.reshape(len(c), *operation.inputs), value, error * (1 + 1e-9) + UNDER

    def _fall(self, a: np.ndarray) -> np.ndarray:
        r"""Upper bounds of -a' d + d' A d / 2 over the ball, A = (1 + s) W_1' L_1 W_1. For any d_0 and any mu >= ||A||, with
        B = mu I - A, weak duality and convexity bound it by mu eps^2 / 2 + d_0' B d_0 / 2 + max -w' d, w = a + B d_0; the last
        term is at most eps |w|, and in the pixel box at most the sum of what each pixel adds."""
        matrix, curvature = self.links[0].matrix, self.bowls[self.links[0].path][1] * (1 + SPARE)
        eps, d = self.radius, np.zeros_like(a)
        low, high = sides(self.x) if self.unit else (np.full_like(a, -np.inf), np.full_like(a, np.inf))
        for _ in range(ROUNDS):
            push = ((d @ matrix.T) * curvature) @ matrix - a
            m = multiplier(push, low, high, eps) if self.unit else np.sqrt((push**2).sum(1)) / np.maximum(eps, UNDER)
            mu = np.maximum(m, self.least)
            before, d = d, np.clip(push / mu[:, None], low, high)
            if bool((np.abs(d - before).max(axis=1) <= SETTLED * eps).all()):
                break
        y = d @ matrix.T
        w = a + mu[:, None] * d - (curvature * y) @ matrix
        long, most = lengths(d), curvature.max(axis=1) * frobenius(matrix) ** 2
        unit = 32 * (sum(matrix.shape) + 64) * UNIT
        bent, bowl = (curvature * y * y).sum(1), mu * (d * d).sum(1)
        reached = lengths(w) * eps
        if self.unit:  # summing rounds by at most n units of the sum of what is at most |w|
            reached = np.fmin(reached, np.maximum(-w * low, -w * high).sum(1) + unit * (np.abs(w) * (high - low)).sum(1))
        value = mu / 2 * eps * eps + (bowl - bent) / 2 + reached
        rough = unit * (mu * eps * eps + bowl + bent + most * long * long + (lengths(a) + mu * long + most * long) * eps)
        found: np.ndarray = value + rough + UNDER
        return found


@dataclass
class CoupledWitness(Witness):
    """As `Witness`, with curvatures."""

    pushes: list[np.ndarray]
    """(rows, values) for each kink, in order."""
    scales: list[np.ndarray]
    """The same for each kink but the last."""
    norms: np.ndarray
    """(rows, kinks)"""
    links: list[Link]
    shared: np.ndarray | None = field(default=None, kw_only=True)
    """Which of the pushes, scales and norms each row has; None: each its own."""

    def made(self, chain: Chain, at: np.ndarray, x: np.ndarray, radius: np.ndarray) -> Rows:
        plain, paths = super().made(chain, at, x, radius), [link.path for link in self.links]
        which, shared = (at, None) if self.shared is None else np.unique(self.shared[at], return_inverse=True)
        pushes, scales = (
            {path: part[which] for path, part in zip(paths, parts, strict=False)} for parts in (self.pushes, self.scales)
        )
        claims = {path: self.norms[which, k] for k, path in enumerate(paths)}
        found = CoupledRows(chain, x, radius, plain.slopes, plain.multipliers, self.reach, unit=self.unit)
        found.pushes, found.scales, found.norms, found.links, found.shared = pushes, scales, claims, self.links, shared
        return found
