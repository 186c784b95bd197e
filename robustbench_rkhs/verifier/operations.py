"""Base class of operations: a map of images with a proven Lipschitz bound and a bound of its float64 rounding."""

import math
from functools import cached_property

import numpy as np

from .norms import TINY, UNIT

Shape = tuple[int, ...]


class Malformed(Exception):
    """The file is not a valid proof; says what was found and what was expected."""


def reason(error: Exception) -> str:
    """The first non-empty line of a library's error message, without control characters."""
    lines = ("".join(sign for sign in line if sign.isprintable()).strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


class Operation:
    """A map from `inputs` to `outputs`; arrays have a batch dimension first."""

    affine = False
    fan = 1
    """Most terms that are summed into one output."""
    constant = 0.0
    """l2 norm bound of its constant part, including negative parts that an activation hides."""

    def __init__(self, inputs: Shape, outputs: Shape) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.claim: float | None = None
        """The bound that a proof claims; a starting point for the proof here, never trusted."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The linear part of an affine operation."""
        raise NotImplementedError

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        """The transpose of the linear part of an affine operation."""
        raise NotImplementedError

    def _bound(self) -> float:
        return 1.0

    @cached_property
    def bound(self) -> float:
        """Proven upper bound of its Lipschitz constant, computed here."""
        return self._bound()

    @cached_property
    def absolute(self) -> float:
        """Upper bound of || |A| ||, A the matrix of absolute entries; 1 if it only moves values."""
        return 1.0

    @property
    def factor(self) -> float:
        """Relative rounding: a sum of n terms errs by at most n units of the sum of absolute values; a few more for the terms."""
        return 2 * (self.fan + 8) * UNIT

    def moved(self, length: float, back: bool) -> float:
        """Rounding error of its linear part (or the transpose) on vectors of Frobenius norm `length`."""
        return self.factor * self.absolute * length + TINY

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        """Rounding error of its output for an input of this l2 norm."""
        return self.factor * (self.absolute * size + self.constant) + TINY

    def grown(self, size: np.ndarray | float) -> np.ndarray | float:
        """Upper bound of the l2 norm of its output for an input of this l2 norm."""
        return self.bound * size + self.constant + TINY

    def error(self, x: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Bound per image of the distance from its output in real arithmetic, if the input is off by `before`."""
        return self.bound * before * (1 + 8 * UNIT) + self.local(lengths(x))


def lengths(x: np.ndarray) -> np.ndarray:
    """l2 norm of each image, rounded up."""
    flat = x.reshape(len(x), -1)
    peak = np.abs(flat).max(axis=1, initial=TINY)  # no square over- or underflows
    result: np.ndarray = np.sqrt(((flat / peak[:, None]) ** 2).sum(1)) * peak * (1 + 1e-9)
    return result


def expected(condition: bool, words: str) -> None:
    """Raises Malformed unless the condition holds."""
    if not condition:
        raise Malformed(words)


def size(shape: Shape) -> int:
    """Number of values in an image of this shape."""
    return math.prod(shape)


def images(shape: Shape) -> tuple[int, int, int]:
    """Channels, height and width; a sequence (channels, length) is an image of height one."""
    expected(len(shape) in (2, 3), f"expected images or sequences, found shape {shape}")
    return (shape[0], 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])


def like(shape: Shape, channels: int, height: int, width: int) -> Shape:
    """Images where the input was images, sequences where it was sequences."""
    return (channels, width) if len(shape) == 2 else (channels, height, width)
