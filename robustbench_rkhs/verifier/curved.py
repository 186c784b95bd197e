"""Sorting and maximum pools."""

import math

import numpy as np

from .norms import UNIT
from .operations import Operation, Shape, expected, images, like


class MaxMin(Operation):
    """Maximum and minimum of channels i and i + c / 2; 1-Lipschitz, as sorting is."""

    def __init__(self, inputs: Shape) -> None:
        expected(bool(inputs) and inputs[0] % 2 == 0, f"expected an even number of channels, found {inputs}")
        super().__init__(inputs, inputs)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        one, other = np.split(x, 2, axis=1)
        return np.concatenate([np.maximum(one, other), np.minimum(one, other)], axis=1)

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        return 0.0 * size


class GroupSort(Operation):
    """Each group of neighbouring channels in descending order; 1-Lipschitz, as sorting is."""

    def __init__(self, inputs: Shape, group: int) -> None:
        expected(bool(inputs) and group >= 1 and inputs[0] % group == 0, f"expected channels in groups of {group}, found {inputs}")
        super().__init__(inputs, inputs)
        self.group = group

    def __call__(self, x: np.ndarray) -> np.ndarray:
        groups = x.reshape(len(x), -1, self.group, *self.inputs[1:])
        return -np.sort(-groups, axis=2).reshape(x.shape)

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        return 0.0 * size


class Maximum(Operation):
    """Maximum pool. As |max a - max b| <= max |a - b|, its bound is sqrt(largest number of windows that share a pixel)."""

    def __init__(
        self,
        inputs: Shape,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        before: tuple[int, int],
        dilation: tuple[int, int],
        places: tuple[int, int],
    ) -> None:
        channels, *self.sizes = images(inputs)
        expected(min(*kernel, *stride, *dilation, *places) >= 1 and min(before) >= 0, "a pool's sizes are not positive")
        windows, self.taps = [], []
        for axis in (0, 1):
            reads = np.arange(places[axis])[:, None] * stride[axis] - before[axis] + np.arange(kernel[axis]) * dilation[axis]
            inside = (reads >= 0) & (reads < self.sizes[axis])
            expected(bool(inside.any(axis=1).all()), "a window contains no pixel")
            windows.append(int(np.bincount(reads[inside], minlength=1).max()))
            self.taps.append(np.where(inside, reads, self.sizes[axis]))
        super().__init__(inputs, like(inputs, channels, *places))
        self.windows = windows[0] * windows[1]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        channels = images(self.inputs)[0]
        x = np.pad(x.reshape(len(x), channels, *self.sizes), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
        rows = np.maximum.reduce([x[:, :, tap] for tap in self.taps[0].T])
        columns = np.maximum.reduce([rows[..., tap] for tap in self.taps[1].T])
        result: np.ndarray = columns.reshape(len(x), *self.outputs)
        return result

    def _bound(self) -> float:
        return 1.0 if self.windows == 1 else math.sqrt(self.windows) * (1 + 4 * UNIT)

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        return 0.0 * size
