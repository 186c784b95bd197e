"""Convolutions and average pools, computed tap by tap."""

import math
from functools import cached_property

import numpy as np

from . import norms
from .affine import Affine
from .kernels import Window, bound
from .operations import Shape, expected, images, like

Ends = tuple[tuple[int, int], tuple[int, int]]
"""Padding: (top, bottom), (left, right)."""


class Convolution(Affine):
    """A convolution with kernel (outputs, inputs / groups, height, width) and zero or circular padding."""

    def __init__(
        self,
        inputs: Shape,
        weight: np.ndarray,
        bias: np.ndarray | None,
        stride: tuple[int, int] = (1, 1),
        padding: Ends = ((0, 0), (0, 0)),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        circular: bool = False,
    ) -> None:
        channels, height, width = images(inputs)
        expected(weight.ndim == 4 and min(*weight.shape, *stride, *dilation, groups) >= 1, "a convolution's sizes are not positive")
        rows, columns, *kernel = weight.shape
        fits = columns * groups == channels and rows % groups == 0 and min(min(ends) for ends in padding) >= 0
        expected(fits, f"a convolution of {rows} x {columns} channels in {groups} groups does not fit images of {channels}")
        expected(bias is None or bias.shape == (rows,), "a bias does not fit its kernel")
        self.sizes = height, width
        expected(not circular or all(max(padding[i]) <= self.sizes[i] for i in (0, 1)), "circular padding wraps more than once")
        self.reach = tuple(dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1))
        places = [(self.sizes[i] + sum(padding[i]) - self.reach[i]) // stride[i] + 1 for i in (0, 1)]
        expected(min(places) >= 1, "a kernel does not fit into its image")
        super().__init__(inputs, like(inputs, rows, *places))
        expected(len(inputs) == 3 or places[0] == 1, "a convolution of sequences has height one")
        self.weight, self.bias, self.places = weight, bias, (places[0], places[1])
        self.stride, self.padding, self.dilation, self.groups, self.circular = stride, padding, dilation, groups, circular
        self.channels = channels
        self.copies = 9 if circular else 1
        taps = kernel[0] * kernel[1]
        self.fan = taps * max(columns, self.copies * rows // groups)
        self.constant = 0.0 if bias is None else norms.frobenius(bias) * math.sqrt(math.prod(places)) * (1 + 1e-9)

    def _around(self, axis: int) -> np.ndarray:
        before, after = self.padding[axis]
        return np.arange(-before, self.sizes[axis] + after) % self.sizes[axis]

    def _tap(self, row: int, column: int) -> tuple[slice, slice]:
        at = row * self.dilation[0], column * self.dilation[1]
        rows, columns = (slice(at[i], at[i] + self.stride[i] * (self.places[i] - 1) + 1, self.stride[i]) for i in (0, 1))
        return rows, columns

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = self.apply(x)
        if self.bias is None:
            return y
        result: np.ndarray = y + self.bias.reshape(-1, *(1,) * (len(self.outputs) - 1))
        return result

    def apply(self, x: np.ndarray) -> np.ndarray:
        batch, groups = len(x), self.groups
        x = x.reshape(batch, self.channels, *self.sizes).swapaxes(0, 1)
        if self.circular:
            x = x.take(self._around(0), axis=2).take(self._around(1), axis=3)
        else:
            x = np.pad(x, ((0, 0), (0, 0), *self.padding))
        rows = self.weight.shape[0]
        weight = self.weight.reshape(groups, rows // groups, *self.weight.shape[1:])
        y = np.zeros((groups, rows // groups, batch * self.places[0] * self.places[1]))
        for row in range(weight.shape[3]):
            for column in range(weight.shape[4]):
                part = x[:, :, *self._tap(row, column)].reshape(groups, self.channels // groups, -1)
                y += weight[..., row, column] @ part
        return y.reshape(rows, batch, *self.places).swapaxes(0, 1).reshape(batch, *self.outputs)

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        batch, groups, rows = len(v), self.groups, self.weight.shape[0]
        v = v.reshape(batch, rows, *self.places).swapaxes(0, 1).reshape(groups, rows // groups, -1)
        weight = self.weight.reshape(groups, rows // groups, *self.weight.shape[1:])
        wide = [self.sizes[i] + sum(self.padding[i]) for i in (0, 1)]
        x = np.zeros((self.channels, batch, *wide))
        for row in range(weight.shape[3]):
            for column in range(weight.shape[4]):
                part = weight[..., row, column].swapaxes(1, 2) @ v
                x[:, :, *self._tap(row, column)] += part.reshape(self.channels, batch, *self.places)
        if self.circular:
            folded = np.zeros((self.channels, batch, self.sizes[0], wide[1]))
            for at, place in enumerate(self._around(0)):
                folded[:, :, place] += x[:, :, at]
            x = np.zeros((self.channels, batch, *self.sizes))
            for at, place in enumerate(self._around(1)):
                x[..., place] += folded[..., at]
        else:
            (top, _), (left, _) = self.padding
            x = x[:, :, top : top + self.sizes[0], left : left + self.sizes[1]]
        return x.swapaxes(0, 1).reshape(batch, *self.inputs)

    def _bound(self) -> float:
        weight = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        before = self.padding[0][0], self.padding[1][0]
        window = Window(self.sizes, self.places, self.stride, self.dilation, before, self.circular)
        return bound(weight, window, self.claim)

    @cached_property
    def absolute(self) -> float:
        weight = np.abs(self.weight)
        columns = weight.reshape(self.groups, -1, *weight.shape[1:]).sum(axis=(1, 3, 4))
        return norms.absolute(weight.sum(axis=(1, 2, 3)), columns * self.copies)


class Average(Affine):
    """Average pool: sums over windows per channel, divided by a divisor; zero padding is included."""

    def __init__(self, inputs: Shape, kernel: tuple[int, int], stride: tuple[int, int], padding: Ends, divisor: float) -> None:
        expected(min(kernel) >= 1 and math.isfinite(divisor) and divisor != 0, "a pool's sizes are not positive")
        channels, height, width = images(inputs)
        self.window = Convolution((1, height, width), np.full((1, 1, *kernel), 1 / divisor), None, stride, padding)
        super().__init__(inputs, like(inputs, channels, *self.window.places))
        self.fan = self.window.fan

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.apply(x)

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self.window.apply(x.reshape(-1, *self.window.inputs)).reshape(len(x), *self.outputs)

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        return self.window.adjoint(v.reshape(-1, *self.window.outputs)).reshape(len(v), *self.inputs)

    def _bound(self) -> float:
        self.window.claim = self.claim
        return self.window.bound

    @cached_property
    def absolute(self) -> float:
        return self.window.absolute
