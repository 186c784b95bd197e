"""The base class of operations: a map of images with its own proven bound and a bound of its float64 rounding."""

import math
from functools import cached_property

import numpy as np

from .norms import TINY, UNIT

Shape = tuple[int, ...]


class Malformed(Exception):
    """This is not a proof: what was found, and what was expected."""


def reason(error: Exception) -> str:
    """The first line of a library's message that says anything, without control codes."""
    lines = ("".join(sign for sign in line if sign.isprintable()).strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


class Operation:
    """A map from `inputs` to `outputs`; arrays have a batch dimension first."""

    affine = False
    fan = 1
    """How many numbers an output is summed from, at most."""
    constant = 0.0
    """l2 length of what it adds, negative parts that an activation hides included."""

    def __init__(self, inputs: Shape, outputs: Shape) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.claim: float | None = None
        """What a proof claims of its bound: a witness, which own proofs may start from."""

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
        """Own proven upper bound of its Lipschitz constant."""
        return self._bound()

    @cached_property
    def absolute(self) -> float:
        """Upper bound of || |A| ||, A its matrix with all entries positive; 1 for what only moves numbers."""
        return 1.0

    @property
    def factor(self) -> float:
        """Sums of n terms err by at most n units, in any order, of the sum of absolute values; a few more for the terms."""
        return 2 * (self.fan + 8) * UNIT

    def moved(self, length: float, back: bool) -> float:
        """How far rounding moves its linear part (or the transpose) of vectors whose Frobenius norm is `length`."""
        return self.factor * self.absolute * length + TINY

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        """How far rounding moves what it computes from an input of this l2 length."""
        return self.factor * (self.absolute * size + self.constant) + TINY

    def grown(self, size: np.ndarray | float) -> np.ndarray | float:
        """Upper bound of the l2 length of what it makes of an input of this length."""
        return self.bound * size + self.constant + TINY

    def error(self, x: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Distance of its output to that in real arithmetic, image by image, where the input is off by `before`."""
        return self.bound * before * (1 + 8 * UNIT) + self.local(lengths(x))


def lengths(x: np.ndarray) -> np.ndarray:
    """l2 length of each image, rounded up."""
    flat = x.reshape(len(x), -1)
    peak = np.abs(flat).max(axis=1, initial=TINY)  # no square over- or underflows
    result: np.ndarray = np.sqrt(((flat / peak[:, None]) ** 2).sum(1)) * peak * (1 + 1e-9)
    return result


def expected(condition: bool, words: str) -> None:
    """Raises Malformed unless the condition holds."""
    if not condition:
        raise Malformed(words)


def size(shape: Shape) -> int:
    """How many numbers an image of this shape has."""
    return math.prod(shape)


def images(shape: Shape) -> tuple[int, int, int]:
    """Channels, height and width; a sequence (channels, length) is an image of height one."""
    expected(len(shape) in (2, 3), f"expected images or sequences, found shape {shape}")
    return (shape[0], 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])


def like(shape: Shape, channels: int, height: int, width: int) -> Shape:
    """Images where the input was images, sequences where it was sequences."""
    return (channels, width) if len(shape) == 2 else (channels, height, width)
