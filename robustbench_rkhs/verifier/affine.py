"""Affine operations: matrix products, diagonal maps, and operations that only move values."""

import math
from functools import cached_property

import numpy as np

from . import norms
from .norms import UNIT
from .operations import Operation, Shape, expected, size


class Affine(Operation):
    """x -> A x + b."""

    affine = True


class Linear(Affine):
    """y = W x + b on the last dimension."""

    def __init__(self, inputs: Shape, weight: np.ndarray, bias: np.ndarray | None) -> None:
        expected(weight.ndim == 2 and bool(inputs) and inputs[-1] == weight.shape[1], "a linear layer does not fit its input")
        expected(bias is None or bias.shape == weight.shape[:1], "a bias does not fit its weight")
        super().__init__(inputs, (*inputs[:-1], weight.shape[0]))
        self.weight, self.bias, self.fan = weight, bias, max(weight.shape)
        self.constant = 0.0 if bias is None else norms.frobenius(bias) * math.sqrt(size(inputs[:-1])) * (1 + 1e-9)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.apply(x) if self.bias is None else self.apply(x) + self.bias

    def apply(self, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = x @ self.weight.T
        return result

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        result: np.ndarray = v @ self.weight
        return result

    def _bound(self) -> float:
        return norms.norm(self.weight, self.claim)

    @cached_property
    def absolute(self) -> float:
        weight = np.abs(self.weight)
        return norms.absolute(weight.sum(1), weight.sum(0))


class Diagonal(Affine):
    """y_c = (x_c - center_c) scale_c + shift_c; one number per channel, or one for all."""

    def __init__(self, inputs: Shape, center: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
        for numbers in (center, scale, shift):
            expected(numbers.ndim == 1 and len(numbers) in (1, inputs[0]), "a diagonal does not fit its channels")
        super().__init__(inputs, inputs)
        around = (-1, *(1,) * (len(inputs) - 1))
        self.center, self.scale, self.shift = (numbers.reshape(around) for numbers in (center, scale, shift))
        all_of_it = np.abs(self.center * self.scale) + np.abs(self.shift)
        self.constant = norms.frobenius(np.broadcast_to(all_of_it, inputs))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = (x - self.center) * self.scale + self.shift
        return result

    def apply(self, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = x * self.scale
        return result

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        result: np.ndarray = v * self.scale
        return result

    def _bound(self) -> float:
        return float(np.abs(self.scale).max())

    @cached_property
    def absolute(self) -> float:
        return self.bound * (1 + 4 * UNIT)


class Move(Affine):
    """Base of operations that move values, append zeros or drop values: no arithmetic, hence no rounding."""

    def moved(self, length: float, back: bool) -> float:
        return 0.0

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        return 0.0 * size


class Reshape(Move):
    """Reshape: the same values in the same order."""

    def __init__(self, inputs: Shape, outputs: Shape) -> None:
        expected(size(inputs) == size(outputs) and min(outputs, default=1) >= 1, f"{inputs} does not reshape to {outputs}")
        super().__init__(inputs, outputs)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), *self.outputs)

    apply = __call__

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        return v.reshape(len(v), *self.inputs)


class Fit(Move):
    """Pads each dimension with zeros at its end, or crops its end."""

    def __init__(self, inputs: Shape, outputs: Shape) -> None:
        expected(len(inputs) == len(outputs) and min(outputs, default=1) >= 1, f"{inputs} does not fit into {outputs}")
        super().__init__(inputs, outputs)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return _fitted(x, self.outputs)

    apply = __call__

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        return _fitted(v, self.inputs)


def _fitted(x: np.ndarray, shape: Shape) -> np.ndarray:
    y = np.zeros((len(x), *shape))
    common = (slice(None), *(slice(min(pair)) for pair in zip(x.shape[1:], shape, strict=True)))
    y[common] = x[common]
    return y


class Unshuffle(Move):
    """Each block of n x n pixels as channels of one pixel: channel c, row i, column j of the block becomes c n^2 + i n + j."""

    def __init__(self, inputs: Shape, block: int) -> None:
        expected(len(inputs) == 3 and block >= 1 and not inputs[1] % block and not inputs[2] % block, "blocks do not fit an image")
        channels, height, width = inputs
        self.block = block
        super().__init__(inputs, (channels * block**2, height // block, width // block))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        (channels, height, width), n = self.inputs, self.block
        x = x.reshape(-1, channels, height // n, n, width // n, n).transpose(0, 1, 3, 5, 2, 4)
        return x.reshape(-1, *self.outputs)

    apply = __call__

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        (channels, height, width), n = self.inputs, self.block
        v = v.reshape(-1, channels, n, n, height // n, width // n).transpose(0, 1, 4, 2, 5, 3)
        return v.reshape(-1, *self.inputs)


class Shuffle(Move):
    """Channels as blocks of n x n pixels: the inverse of Unshuffle."""

    def __init__(self, inputs: Shape, block: int) -> None:
        expected(len(inputs) == 3 and block >= 1 and not inputs[0] % block**2, "channels do not make blocks of an image")
        channels, height, width = inputs
        self.back = Unshuffle((channels // block**2, height * block, width * block), block)
        super().__init__(inputs, self.back.inputs)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.back.adjoint(x)

    apply = __call__

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        return self.back.apply(v)


class Pad(Move):
    """A constant around each image: (top, bottom), (left, right); where negative, pixels are cut off."""

    def __init__(self, inputs: Shape, ends: tuple[tuple[int, int], tuple[int, int]], value: float) -> None:
        expected(len(inputs) == 3 and math.isfinite(value), "a border does not fit an image")
        channels, *sizes = inputs
        outputs = (channels, *(sizes[i] + sum(ends[i]) for i in (0, 1)))
        kept = [(max(-ends[i][0], 0), min(sizes[i], sizes[i] + ends[i][1])) for i in (0, 1)]
        expected(min(outputs) >= 1 and all(low < high for low, high in kept), "the padding crops the whole image")
        super().__init__(inputs, outputs)
        rows, columns = (slice(low, high) for low, high in kept)
        down, across = (slice(kept[i][0] + ends[i][0], kept[i][1] + ends[i][0]) for i in (0, 1))
        self.value, self.read, self.written = value, (..., rows, columns), (..., down, across)
        self.constant = abs(value) * math.sqrt(size(outputs))

    def _around(self, x: np.ndarray, value: float) -> np.ndarray:
        y = np.full((len(x), *self.outputs), value)
        y[self.written] = x[self.read]
        return y

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._around(x, self.value)

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self._around(x, 0.0)

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        x = np.zeros((len(v), *self.inputs))
        x[self.read] = v[self.written]
        return x
