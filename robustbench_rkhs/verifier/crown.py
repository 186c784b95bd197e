"""Re-check of CROWN and IBP radii: intervals and two lines at each kink, computed anew from the network alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .activations import Activation
from .backward import Backward, Moved
from .chain import Branches, Chain
from .intervals import Box, ball, first, through
from .lagrangian import Found
from .liplt import Path
from .norms import TINY, UNIT
from .operations import Operation
from .pixel_box import sides

ROWS = 512
"""Rows that are taken back at once."""


@dataclass
class Lines(Backward):
    """Rows about images whose intervals are known."""

    norm: str = "l2"
    image: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    """The image of each row, in `boxes`."""
    boxes: dict[Path, Box] = field(default_factory=dict)
    """What enters each operation."""

    def of(self, image: np.ndarray) -> "Lines":
        """Rows about these images."""
        return Lines(self.chain, self.x[image], self.radius[image], self.norm, image, self.boxes, unit=self.unit)

    def least(self, c: np.ndarray) -> np.ndarray:
        """Lower bounds of rows of the logits."""
        return self._finish(*self._back(self.chain, c, ()))

    def before(self, path: Path, c: np.ndarray) -> np.ndarray:
        """Lower bounds of rows of what enters an operation: back through the branches that it lies in, then to the image."""
        chains: list[tuple[Chain, Path]] = [(self.chain[: path[0]], ())]
        operation = self.chain[path[0]]
        for at in range(1, len(path), 2):
            assert isinstance(operation, Branches)
            branch = operation.chains[path[at]]
            chains.append((branch[: path[at + 1]], path[: at + 1]))
            operation = branch[path[at + 1]]
        constant, error = np.zeros(len(c)), np.zeros(len(c))
        for chain, start in reversed(chains):
            c, added, more = self._back(chain, c, start)
            error = error + more + 4 * UNIT * (np.abs(constant) + np.abs(added))
            constant = constant + added
        return self._finish(c, constant, error)

    def known(self, chain: Chain, at: int, path: Path, straight: int) -> Box | None:
        """What is known of an operation's input besides its interval: exact bounds where one affine run leads there."""
        return first(chain[:at], self.x, self.radius, self.norm) if straight == at and at else None

    def worth(self, unsure: np.ndarray) -> bool:
        """Whether rows are taken back for these values (images, values)."""
        return True

    def _fall(self, a: np.ndarray) -> np.ndarray:
        if self.norm == "l2":
            return super()._fall(a)
        found: np.ndarray = np.abs(a).sum(1) * (1 + 2 * a.shape[1] * UNIT) * self.radius
        if self.unit:
            low, high = sides(self.x)
            most = self.radius[:, None]
            moved = np.maximum(-a * np.maximum(low, -most), -a * np.minimum(high, most))
            found = np.fmin(found, moved.sum(1) * (1 + 2 * (a.shape[1] + 8) * UNIT) + TINY)
        return found

    def _longest(self, path: Path) -> np.ndarray:
        longest: np.ndarray = self.boxes[path].longest[self.image]
        return longest

    def _kink(self, operation: Operation, c: np.ndarray, path: Path) -> Moved:
        r"""c' f(h) >= r' h + sum_i min over [l_i, u_i] of c_i f(z) - r_i z, for any r. At a ReLU the minimum is at l_i, u_i or 0
        and r follows the chord where c_i < 0, else the nearer side; elsewhere r = 0, with the interval of f."""
        box, c, left = self.boxes[path], c.reshape(len(c), -1), _left(operation)
        if left is None:
            low, high = (one.reshape(len(one), -1)[self.image] for one in through(operation, box))
            parts = np.minimum(c * low, c * high)
            return np.zeros((len(c), *operation.inputs)), *_summed(parts, np.abs(parts))
        low, high = (one.reshape(len(one), -1)[self.image] for one in box)
        bent = (low < 0) & (high > 0)
        chord = (high - left * low) / np.where(bent, high - low, 1)
        side = np.where(high > -low, 1.0, left)
        row = np.where(bent, np.where(c < 0, chord, side), np.where(low >= 0, 1.0, left)) * c
        parts, sizes = np.where(bent, 0.0, np.inf), np.zeros_like(c)
        for z in (low, high):
            f = np.where(z > 0, z, left * z)
            parts = np.minimum(parts, c * f - row * z)
            sizes = sizes + np.abs(c * f) + np.abs(row * z)
        return row.reshape(len(c), *operation.inputs), *_summed(parts, sizes)


def _left(operation: Operation) -> float | None:
    """The slope of a ReLU left of zero; None for other operations."""
    if not isinstance(operation, Activation) or operation.kind not in ("relu", "leaky_relu"):
        return None
    left = operation.settings[0] if operation.settings else 0.0
    return left if 0 <= left <= 1 else None


def _summed(parts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each row, and its rounding."""
    return parts.sum(1), 4 * (parts.shape[1] + 64) * UNIT * sizes.sum(1) * (1 + 1e-9) + TINY


def bounded(chain: Chain, x: np.ndarray, radius: np.ndarray, norm: str, linear: bool, unit: bool = False) -> Lines:
    """The intervals of what enters each operation over the balls; `linear`: tightened by rows back to the image. `unit`: over
    what of the balls lies in [0, 1]."""
    found = Lines(chain, x, radius, norm, np.arange(len(x)), unit=unit)
    walk(found, ball(x, radius, unit), linear)
    return found


def walk(found: Lines, box: Box, linear: bool = True) -> None:
    """Fills `found.boxes`, from a box that holds the image's ball."""
    _walk(found, found.chain, box, (), linear, 0)


def _walk(found: Lines, chain: Chain, box: Box, path: Path, linear: bool, straight: int) -> Box:
    """Fills `found.boxes`. `straight`: so many operations from the image on are one affine run; -1 behind it."""
    for at, operation in enumerate(chain):
        here = (*path, at)
        if not operation.affine:
            known = found.known(chain, at, path, straight)
            if known is not None:
                box = box.meet(known)
            exact = known is not None and straight == at and not (found.unit and found.norm == "l2")
            if linear and not isinstance(operation, Branches) and not exact:
                box = box.meet(_tightened(found, here, box, operation))
            straight = -1
        found.boxes[here] = box
        if isinstance(operation, Branches):
            ends = [_walk(found, branch, box, (*here, number), linear, -1) for number, branch in enumerate(operation.chains)]
            box = through(operation, box) if operation.affine else _joined(operation, ends)
        else:
            box = through(operation, box)
        straight += straight >= 0
    found.boxes[*path, len(chain)] = box
    return box


def _joined(operation: Branches, ends: Sequence[Box]) -> Box:
    lower, upper = (operation._joined([end[k] for end in ends]) for k in (0, 1))
    if not operation.added:
        return Box(lower, upper)
    sizes = sum(np.maximum(np.abs(end.lower), np.abs(end.upper)) for end in ends)
    off = 4 * len(ends) * UNIT * sizes + TINY
    return Box(lower - off, upper + off)


def _tightened(found: Lines, path: Path, box: Box, operation: Operation) -> Box:
    """Bounds by rows of the values that can lie on both sides of a kink; of all values where it is no kink."""
    lower, upper = (one.reshape(len(one), -1).copy() for one in box)
    unsure = lower < upper if _left(operation) is None else (lower < 0) & (upper > 0)
    if not found.worth(unsure):
        return box
    image, unit = np.nonzero(unsure)
    for start in range(0, len(image), ROWS):
        part, at = image[start : start + ROWS], unit[start : start + ROWS]
        rows = np.zeros((len(part), lower.shape[1]))
        for sign in (1.0, -1.0):
            rows[np.arange(len(part)), at] = sign
            bound = sign * found.of(part).before(path, rows.reshape(len(part), *operation.inputs))
            if sign > 0:
                lower[part, at] = np.fmax(lower[part, at], bound)
            else:
                upper[part, at] = np.fmin(upper[part, at], bound)
    return Box(lower.reshape(box.lower.shape), upper.reshape(box.upper.shape))


def radii_proved(
    chain: Chain, x: np.ndarray, label: np.ndarray, claimed: np.ndarray, classes: int, norm: str, linear: bool, unit: bool = False
) -> Found:
    """The claimed radius of each image where the differences of logits are proved above zero over its ball, else 0.

    `linear`: CROWN; else IBP: intervals up to the last affine run, whose rows are taken as differences. `unit`: in [0, 1] alone.
    """
    found, why = np.zeros(len(x)), ["but nothing is claimed"] * len(x)
    for number in np.nonzero(claimed > 0)[0]:
        with np.errstate(all="ignore"):  # what is not finite proves nothing
            known = bounded(chain, x[number][None], claimed[number][None], norm, linear, unit)
            others = np.delete(np.arange(classes), label[number])
            eye = np.eye(classes)
            rows = eye[label[number]][None] - eye[others]
            bound = known.of(np.zeros(len(rows), int)).least(rows) if linear else _from_last(known, rows)
        if bool((bound > 0).all()):
            found[number], why[number] = claimed[number], ""
        else:
            worst = int(np.nan_to_num(bound, nan=-np.inf).argmin())
            why[number] = f"but against class {others[worst]} its lower bound is {bound[worst]:.4g}"
    return found, why


def _from_last(known: Lines, rows: np.ndarray) -> np.ndarray:
    """Lower bounds of rows of the logits over the intervals of what enters the last affine run."""
    start = len(known.chain)
    while start and known.chain[start - 1].affine:
        start -= 1
    many = known.of(np.zeros(len(rows), int))
    if not start:
        return many.least(rows)
    tail = Tail(known.chain, many.x, many.radius, "linf", many.image, known.boxes)
    return tail.over(start, rows)


class Tail(Lines):
    """Rows that end at the intervals before the last affine run."""

    def over(self, start: int, rows: np.ndarray) -> np.ndarray:
        constant, error, c = np.zeros(len(rows)), np.zeros(len(rows)), rows
        for at in range(len(self.chain) - 1, start - 1, -1):
            c, added, more = self._affine(self.chain[at], c, (at,))
            error = error + more + 4 * UNIT * (np.abs(constant) + np.abs(added))
            constant = constant + added
        flat = c.reshape(len(c), -1)
        low, high = (one.reshape(1, -1) for one in self.boxes[start,])
        value, rough = _summed(np.minimum(flat * low, flat * high), np.abs(flat) * np.maximum(np.abs(low), np.abs(high)))
        found: np.ndarray = value + constant - error - rough - 8 * UNIT * (np.abs(value) + np.abs(constant) + error)
        return found
