"""Intervals of what enters and leaves an operation, in real arithmetic: every bound is rounded outwards."""

import copy
from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple

import numpy as np

from .activations import EXACT, UNITS, Activation
from .affine import Diagonal, Linear, Move
from .chain import Branches, Chain, dense
from .convolution import Average, Convolution
from .curved import GroupSort, Maximum, MaxMin
from .norms import TINY, UNIT
from .operations import Malformed, Operation, lengths, size

LARGEST = 2**24
"""Most numbers of a matrix."""
DIPS = {"gelu": (-0.752, -0.751, -0.17), "silu": (-1.2785, -1.2784, -0.27847), "hardswish": (-1.5, -1.5, -0.375)}
"""Activations that fall and then rise: where they turn, and a bound of their least value."""


class Box(NamedTuple):
    """lower <= value <= upper, (images, *shape)."""

    lower: np.ndarray
    upper: np.ndarray

    @property
    def longest(self) -> np.ndarray:
        """The l2 norm of the longest value, rounded up."""
        return lengths(np.maximum(np.abs(self.lower), np.abs(self.upper)))

    def meet(self, other: "Box") -> "Box":
        return Box(np.maximum(self.lower, other.lower), np.minimum(self.upper, other.upper))


def ball(x: np.ndarray, radius: np.ndarray, unit: bool = False) -> Box:
    """A box that holds the ball (l2 or linf) of each image; `unit`: what of it lies in [0, 1], and the image itself."""
    box = _around(x, np.broadcast_to(radius.reshape(-1, *(1,) * (x.ndim - 1)), x.shape))
    if not unit:
        return box
    return Box(np.minimum(np.clip(box.lower, 0, 1), x), np.maximum(np.clip(box.upper, 0, 1), x))


def through(operation: Operation, box: Box) -> Box:
    """What leaves an operation whose input lies in a box. Raises Malformed for an operation without a rule."""
    if operation.affine:
        center = (box.lower + box.upper) / 2
        radius = np.maximum(box.upper - center, center - box.lower) * (1 + 4 * UNIT) + TINY
        middle, spread, size_ = _affine([operation], center, radius)
        return _around(middle, spread * (1 + operation.factor) + size_)
    if isinstance(operation, Activation):
        return _bent(operation, box)
    if isinstance(operation, MaxMin | GroupSort | Maximum):  # they rise with every input, and only select
        return Box(operation(box.lower), operation(box.upper))
    raise Malformed(f"there is no interval of {type(operation).__name__}")


def first(run: Sequence[Operation], x: np.ndarray, radius: np.ndarray, norm: str) -> Box | None:
    r"""What leaves an affine run whose input lies in a ball: W x + b +- radius |W|_* row by row, * the dual norm; None where its
    matrix would be too large."""
    if size(run[0].inputs) * size(run[-1].outputs) > LARGEST:
        return None
    return over(run, dense(run), x, radius, norm)


def over(run: Sequence[Operation], matrix: tuple[np.ndarray, float], x: np.ndarray, radius: np.ndarray, norm: str) -> Box:
    """`first`, with the run's matrix and its rounding."""
    (rows, off), inputs = matrix, size(run[0].inputs)
    widths = lengths(rows) if norm == "l2" else np.abs(rows).sum(1) * (1 + 2 * (inputs + 8) * UNIT)
    widths = (widths + off * (1 if norm == "l2" else np.sqrt(inputs))) * (1 + 1e-12)
    middle, _, missed = _affine(run, x, np.zeros_like(x))
    return _around(middle, (radius[:, None] * widths).reshape(middle.shape) * (1 + 8 * UNIT) + missed)


def _affine(run: Sequence[Operation], x: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The value of an affine run at x, |A| radius, and a bound of the value's rounding, value by value."""
    missed = np.zeros_like(x)
    for operation in run:
        if isinstance(operation, Branches):
            found = [_affine(chain, x, radius) if chain else (x, radius, np.zeros_like(x)) for chain in operation.chains]
            before = [spread(operation, missed)] if missed.any() else []
            middle, wide, off = (operation._joined([part[k] for part in found]) for k in range(3))
            size_ = operation._joined([np.abs(part[0]) + part[1] for part in found])
            rounded = 4 * len(found) * UNIT * size_
            x, radius, missed = middle, wide + rounded, off + rounded + sum(before)
            continue
        size_ = spread(operation, np.abs(x) + missed) + offset(operation)
        missed = spread(operation, missed) * (1 + operation.factor) + operation.factor * size_ + TINY
        x, radius = operation(x), spread(operation, radius) * (1 + operation.factor)
    return x, radius, missed


@singledispatch
def spread(operation: Operation, radius: np.ndarray) -> np.ndarray:
    """|A| radius for an affine operation; up to its own `factor` of rounding."""
    raise Malformed(f"there is no interval of {type(operation).__name__}")


@spread.register
def _(operation: Linear, radius: np.ndarray) -> np.ndarray:
    found: np.ndarray = radius @ np.abs(operation.weight).T
    return found


@spread.register
def _(operation: Convolution, radius: np.ndarray) -> np.ndarray:
    absolute = copy.copy(operation)
    absolute.weight = np.abs(operation.weight)
    return absolute.apply(radius)


@spread.register
def _(operation: Average, radius: np.ndarray) -> np.ndarray:
    return spread(operation.window, radius.reshape(-1, *operation.window.inputs)).reshape(len(radius), *operation.outputs)


@spread.register
def _(operation: Diagonal, radius: np.ndarray) -> np.ndarray:
    found: np.ndarray = radius * np.abs(operation.scale)
    return found


@spread.register
def _(operation: Move, radius: np.ndarray) -> np.ndarray:
    return operation.apply(radius)


@spread.register
def _(operation: Branches, radius: np.ndarray) -> np.ndarray:
    return operation._joined([_spread(chain, radius) for chain in operation.chains]) * (1 + 8 * len(operation.chains) * UNIT)


def _spread(chain: Chain, radius: np.ndarray) -> np.ndarray:
    for operation in chain:
        radius = spread(operation, radius) * (1 + operation.factor)
    return radius


def offset(operation: Operation) -> np.ndarray | float:
    """Sizes of the constants that an affine operation adds."""
    if isinstance(operation, Diagonal):
        found: np.ndarray = np.abs(operation.center * operation.scale) + np.abs(operation.shift)
        return found
    constant: np.ndarray = np.abs(operation(np.zeros((1, *operation.inputs))))  # a bias or a border, exact
    return constant


def _bent(operation: Activation, box: Box) -> Box:
    low, high = operation(box.lower), operation(box.upper)
    if operation.kind in DIPS:
        left, right, least = DIPS[operation.kind]
        low, high = np.where(box.lower >= right, low, np.where(box.upper <= left, high, least)), np.maximum(low, high)
    elif operation.slopes[0] < 0:
        raise Malformed(f"there is no interval of {operation.kind} with a negative slope")
    if operation.kind in EXACT:
        return Box(low, high)
    off = UNITS * UNIT * (operation.bound * np.maximum(np.abs(box.lower), np.abs(box.upper)) + operation._largest()) + 1e-290
    return Box(low - off, high + off)


def _around(middle: np.ndarray, radius: np.ndarray) -> Box:
    wider = radius * (1 + 4 * UNIT) + 4 * UNIT * np.abs(middle) + TINY
    return Box(middle - wider, middle + wider)
