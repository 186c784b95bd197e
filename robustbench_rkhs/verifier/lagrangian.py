"""Re-check of linear bounds from l2 balls: slopes and multipliers for each kink, image and pair of classes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .activations import Activation
from .backward import Backward, Moved
from .chain import Branches, Chain
from .liplt import Path, reached
from .norms import TINY, UNIT
from .operations import Malformed, Operation, lengths

Found = tuple[np.ndarray, list[str]]
"""Radii proved here, and why one is 0."""
NOTHING = "but it has no rows for each other class"


def kinks(chain: Chain, path: Path = ()) -> Iterator[tuple[Path, Activation]]:
    """The kinks of a network, in order. Raises Malformed at an operation that has no re-check here."""
    for at, operation in enumerate(chain):
        if operation.affine:
            continue
        if isinstance(operation, Branches):
            for number, branch in enumerate(operation.chains):
                yield from kinks(branch, (*path, at, number))
        elif isinstance(operation, Activation) and operation.kind in ("relu", "leaky_relu") and 0 <= operation.slopes[0] <= 1:
            yield (*path, at), operation
        else:
            raise Malformed(f"there is no re-check of linear bounds through {type(operation).__name__}")


@dataclass
class Rows(Backward):
    """Differences of logits, each about one image and over one l2 ball, with what the witness says of them."""

    slopes: dict[Path, np.ndarray]
    """For each kink (rows, values): the new slope relative to the two sides, any number."""
    multipliers: dict[Path, np.ndarray]
    """For each kink (rows,), above zero."""
    reach: dict[Path, float] = field(default_factory=dict)
    intervals: dict[Path, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, kw_only=True)
    """Of what enters each kink (rows, values), also where a row is bounded on a part of its ball alone; infinite where none."""
    inputs: dict[Path, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """What enters each operation at the image, and its rounding (l2)."""

    def bounds(self, rows: np.ndarray) -> np.ndarray:
        r"""Lower bounds of rows (one linear function of the logits each) over the balls, in real arithmetic.

        At a kink f with slopes a (left) and 1 (right), whose inputs h lie within rho of h0, for any r and any m > 0

        .. math:: c^\top f(h) \ge r^\top h + \sum_i \min_z \big( c_i f(z) - r_i z + \tfrac{m}{2} (z - h_{0i})^2 \big)
                  - \tfrac{m}{2} \rho^2

        (m (rho^2 - |h - h0|^2) >= 0); z runs over the interval of h_i where one is known. rho is the radius times a bound of the
        map from the image to h, proved here, plus the rounding of h0.
        Affine operations: c' (A u + b) = (A' c)' u + c' b. At the image: c' x >= c' x0 - |c| radius.
        Rounding: an error of l2 length e in a row costs e times the longest input there can be; see `_kink` for kinks.
        """
        self.begin()
        return self._finish(*self._back(self.chain, rows.astype(np.float64), ()))

    def begin(self) -> None:
        """What is known of the network at the image."""
        self.reach = self.reach or reached(self.chain)
        self._forward(self.chain, self.x, np.zeros(len(self.x)), ())

    def _forward(self, chain: Chain, x: np.ndarray, error: np.ndarray, path: Path) -> None:
        for at, operation in enumerate(chain):
            here = (*path, at)
            self.inputs[here] = x, error
            if isinstance(operation, Branches) and not operation.affine:
                for number, branch in enumerate(operation.chains):
                    self._forward(branch, x, error, (*here, number))
            error, x = operation.error(x, error), operation(x)

    def ball(self, path: Path) -> np.ndarray:
        """Radius of a ball around the computed input of an operation that holds its input over the image's ball."""
        ball: np.ndarray = (self.reach[path] * self.radius + self.inputs[path][1]) * (1 + 16 * UNIT) + TINY
        return ball

    def _longest(self, path: Path) -> np.ndarray:
        length: np.ndarray = lengths(self.inputs[path][0]) + self.ball(path)
        return length

    def _interval(self, path: Path, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is known of each value before a kink."""
        return self.intervals[path] if path in self.intervals else (np.full_like(c, -np.inf), np.full_like(c, np.inf))

    def _kink(self, operation: Operation, c: np.ndarray, path: Path) -> Moved:
        """The inequality of `bounds`. r is what is computed. A minimiser is computed to within d = 8 u ((|c| + |r|) / m + |h0|),
        which raises its parabola by at most 2 m d^2; each term of the value errs by a few u, their sum by n u of all terms.
        Rounding may choose the wrong side of the kink: the terms at both are charged, the larger of the two. Clipping to an
        interval brings two points no further apart."""
        assert isinstance(operation, Activation)
        left, c = operation.slopes[0], c.reshape(len(c), -1)
        m, center, rho = self.multipliers[path][:, None], self.inputs[path][0].reshape(len(c), -1), self.ball(path)
        row = (left + (1 - left) * self.slopes[path]) * c
        right, wrong = c - row, left * c - row
        low, high = self._interval(path, c)
        above = np.clip(center - right / m, np.maximum(low, 0), np.maximum(high, 0))
        below = np.clip(center - wrong / m, np.minimum(low, 0), np.minimum(high, 0))
        first, second = (part * z + _bowl(m, z - center) for part, z in ((right, above), (wrong, below)))
        z = np.where((high > 0) & ((first <= second) | (low >= 0)), above, below)
        bent = np.where(z > 0, z, left * z)
        ball = _bowl(m[:, 0], rho)
        value = (c * bent - row * z + _bowl(m, z - center)).sum(1) - ball
        both = (np.abs(part * z) + np.abs(row * z) + 2 * _bowl(m, z - center) for part, z in ((c, above), (left * c, below)))
        terms, longest = np.maximum(*both).sum(1) + ball, np.abs(c) + np.abs(row)
        missed = (longest * (longest / m) + m * center * center).sum(1)
        error = 8 * (c.shape[1] + 64) * UNIT * terms + 512 * UNIT**2 * missed
        return row.reshape(len(c), *operation.inputs), value, error * (1 + 1e-9) + TINY


def _bowl(m: np.ndarray, z: np.ndarray) -> np.ndarray:
    """m z^2 / 2, in an order in which z^2 alone neither under- nor overflows."""
    value: np.ndarray = m / 2 * z * z
    return value


@dataclass
class Witness:
    """What is stored of the rows of some images."""

    rows: np.ndarray
    """(image, other class) of each row."""
    slopes: list[np.ndarray]
    """(rows, values) for each kink, in order."""
    multipliers: np.ndarray
    """(rows, kinks)"""
    reach: dict[Path, float]
    """Of the network (`liplt.reached`)."""
    unit: bool = field(default=False, kw_only=True)
    """Whether the images move within [0, 1] alone."""

    def made(self, chain: Chain, at: np.ndarray, x: np.ndarray, radius: np.ndarray) -> Rows:
        """Some of the rows, over balls around these images."""
        places = list(kinks(chain))
        own = {path: self.slopes[k][at] for k, (path, _) in enumerate(places)}
        multipliers = {path: self.multipliers[at, k] for k, (path, _) in enumerate(places)}
        return Rows(chain, x, radius, own, multipliers, self.reach, unit=self.unit)

    def proved(self, chain: Chain, part: slice, x: np.ndarray, label: np.ndarray, claimed: np.ndarray, classes: int) -> Found:
        """The claimed l2 radius of each image where the rows of all other classes are proved above zero over its ball, else 0."""
        found, why = np.zeros(len(x)), [NOTHING] * len(x)
        for place, number in enumerate(range(part.start, part.stop)):
            at = np.nonzero(self.rows[:, 0] == number)[0]
            others = np.delete(np.arange(classes), label[place])
            if not claimed[place] > 0 or not np.array_equal(np.sort(self.rows[at, 1]), others):
                continue
            images, radius = np.repeat(x[place][None], len(at), axis=0), np.full(len(at), claimed[place])
            eye = np.eye(classes)
            bound = self.made(chain, at, images, radius).bounds(eye[label[place]][None] - eye[self.rows[at, 1]])
            if bool((bound > 0).all()):
                found[place], why[place] = claimed[place], ""
            else:
                worst = int(np.nan_to_num(bound, nan=-np.inf).argmin())
                why[place] = f"but against class {self.rows[at[worst], 1]} its lower bound is {bound[worst]:.4g}"
        return found, why
