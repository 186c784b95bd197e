"""Rows of a network taken back to the image, with a bound of their rounding."""

from dataclasses import dataclass, field

import numpy as np

from .chain import Branches, Chain
from .liplt import Path
from .norms import TINY, UNIT
from .operations import Operation, lengths
from .pixel_box import fall, sides

Moved = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows before an operation, what is added to their constants, and the errors of both."""


@dataclass
class Backward:
    """Linear functions of the logits, each about one image and over one ball; subclasses bound what bends them."""

    chain: Chain
    x: np.ndarray
    """The image of each row."""
    radius: np.ndarray
    """Its ball."""
    unit: bool = field(default=False, kw_only=True)
    """Whether the image moves within [0, 1] alone."""

    def _kink(self, operation: Operation, c: np.ndarray, path: Path) -> Moved:
        """Lower bounds of rows behind an operation that is not affine."""
        raise NotImplementedError

    def _longest(self, path: Path) -> np.ndarray:
        """The longest (l2) that enters an operation."""
        raise NotImplementedError

    def _fall(self, a: np.ndarray) -> np.ndarray:
        """How far the rows fall at most within the ball, and within the pixel box if it is cut by it."""
        found: np.ndarray = lengths(a) * self.radius
        if self.unit:
            found = np.fmin(found, fall(a, *sides(self.x), self.radius))
        return found

    def _finish(self, c: np.ndarray, constant: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Lower bounds of rows of the image: c' x >= c' x0 - (how far they fall)."""
        flat, image = c.reshape(len(c), -1), self.x.reshape(len(c), -1)
        middle = (flat * image).sum(1)
        count = 8 * (flat.shape[1] + 64) * UNIT
        error = error + count * (np.abs(flat * image).sum(1) + np.abs(constant)) + TINY
        error = error + 16 * UNIT * (np.abs(middle) + np.abs(constant) + error)
        result: np.ndarray = middle + constant - error - self._fall(flat) * (1 + count)
        return result

    def _back(self, chain: Chain, c: np.ndarray, path: Path) -> Moved:
        """Rows before the chain, their constants and their errors."""
        constant, error = np.zeros(len(c)), np.zeros(len(c))
        for at in range(len(chain) - 1, -1, -1):
            operation, here = chain[at], (*path, at)
            if operation.affine:
                found = self._affine(operation, c, here)
            elif isinstance(operation, Branches):
                found = self._branches(operation, c, here)
            else:
                found = self._kink(operation, c, here)
            c, added, more = found
            error = error + more + 4 * UNIT * (np.abs(constant) + np.abs(added))
            constant = constant + added
        return c, constant, error

    def _affine(self, operation: Operation, c: np.ndarray, path: Path) -> Moved:
        c = c.reshape(len(c), *operation.outputs)
        flat, length = c.reshape(len(c), -1), lengths(c)
        nothing = np.zeros((1, *operation.inputs))
        start, unsure = operation(nothing), operation.error(nothing, np.zeros(1))[0]
        off = np.array([operation.moved(float(one), True) for one in length])
        count = 4 * (flat.shape[1] + 64) * UNIT
        error = off * self._longest(path) + length * (unsure + count * lengths(start)[0])
        return operation.adjoint(c), flat @ start.ravel(), error * (1 + 1e-9) + TINY

    def _branches(self, operation: Branches, c: np.ndarray, path: Path) -> Moved:
        c = c.reshape(len(c), *operation.outputs)
        shares = [c] * len(operation.chains) if operation.added else np.split(c, np.cumsum(operation.channels)[:-1], axis=1)
        parts = [
            self._back(one, share, (*path, number))
            for number, (one, share) in enumerate(zip(operation.chains, shares, strict=True))
        ]
        rows, constants = [part[0].reshape(len(c), *operation.inputs) for part in parts], [part[1] for part in parts]
        summed = np.sum([lengths(row) for row in rows], axis=0) * self._longest(path) + np.sum(np.abs(constants), axis=0)
        error = np.sum([part[2] for part in parts], axis=0) + 4 * UNIT * len(parts) * summed
        return np.sum(rows, axis=0), np.sum(constants, axis=0), error
