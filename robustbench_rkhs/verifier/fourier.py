"""Operations in the Fourier domain: one matrix per frequency of a torus."""

import math
from functools import cached_property

import numpy as np

from . import norms
from .affine import Affine
from .norms import TINY, UNIT
from .operations import Operation, Shape, expected

Torus = tuple[int, int]


class Fourier(Affine):
    r"""y = crop(F^-1 M_theta F pad(x)) + b: a matrix for each frequency (a, b) of the torus with b <= n / 2, in rows.

    The image is zero-padded to the torus and the result cropped to `places`: neither increases the norm. Its norm is at most
    the largest of the matrices' norms: by Parseval the half plane's parts are orthogonal, and taking the real part (which is
    what the inverse transform of real images does at b = 0 and n / 2) does not increase the norm.
    """

    def __init__(self, inputs: Shape, torus: Torus, places: Torus, matrices: np.ndarray, bias: np.ndarray | None) -> None:
        half = torus[1] // 2 + 1
        expected(len(inputs) == 3 and matrices.ndim == 3 and len(matrices) == torus[0] * half, "matrices do not fit their torus")
        expected(
            matrices.shape[2] == inputs[0] and inputs[1] <= torus[0] and inputs[2] <= torus[1], "an image does not fit its torus"
        )
        expected(1 <= places[0] <= torus[0] and 1 <= places[1] <= torus[1], "an output does not fit its torus")
        expected(bias is None or bias.shape == matrices.shape[1:2], "a bias does not fit its matrices")
        super().__init__(inputs, (matrices.shape[1], *places))
        self.torus, self.matrices, self.bias = torus, matrices, bias
        self.fan = max(matrices.shape[1:])
        self.constant = 0.0 if bias is None else norms.frobenius(bias) * math.sqrt(math.prod(places)) * (1 + 1e-9)

    def _multiplied(self, x: np.ndarray, matrices: np.ndarray, places: Torus) -> np.ndarray:
        waves = np.fft.rfft2(x, s=self.torus)
        there = waves.reshape(*waves.shape[:2], -1).transpose(2, 1, 0)
        back = (matrices @ there).transpose(2, 1, 0).reshape(len(x), -1, self.torus[0], self.torus[1] // 2 + 1)
        return np.fft.irfft2(back, s=self.torus)[..., : places[0], : places[1]]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.apply(x) if self.bias is None else self.apply(x) + self.bias[:, None, None]

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self._multiplied(x, self.matrices, (self.outputs[1], self.outputs[2]))

    def adjoint(self, v: np.ndarray) -> np.ndarray:
        return self._multiplied(v, self.matrices.conj().swapaxes(1, 2), (self.inputs[1], self.inputs[2]))

    def _bound(self) -> float:
        return norms.norm(self.matrices, self.claim)

    @cached_property
    def absolute(self) -> float:
        largest = np.abs(self.matrices)
        return norms.absolute(largest.sum(2), largest.sum(1))

    @property
    def factor(self) -> float:
        """Rounding of the product and of two transforms, each bounded by direct summation (an FFT rounds less)."""
        transforms = sum(points * math.sqrt(points) for points in self.torus)
        return (4 * (self.fan + 16) + 32 * (transforms + 16)) * UNIT


class Sandwich(Operation):
    r"""y = sqrt2 A^T relu(sqrt2 B x + c): slope 2 A^T J B with 0 <= J <= I, so at most ||A A^T + B B^T|| = ||[A B]||^2."""

    def __init__(self, inner: Operation, outer: Operation, both: np.ndarray) -> None:
        super().__init__(inner.inputs, outer.outputs)
        self.inner, self.outer, self.both = inner, outer, both
        self.constant = math.sqrt(2) * outer.bound * inner.constant * (1 + 1e-9)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.outer(np.maximum(self.inner(x), 0))

    def _bound(self) -> float:
        found = norms.norm(self.both)
        return max(found * found * (1 + 4 * UNIT), TINY) if found else 0.0

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        return self.outer.bound * self.inner.local(size) + self.outer.local(self.inner.grown(size))


class Reflection(Operation):
    r"""y = x - 2 U relu(U^T x + c): slope I - 2 U J U^T, eigenvalues in [1 - 2 s, 1] for s = ||U||^2: at most max(1, 2 s - 1)."""

    def __init__(self, inner: Affine) -> None:
        super().__init__(inner.inputs, inner.inputs)
        self.inner = inner
        self.constant = 2 * inner.bound * inner.constant * (1 + 1e-9)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = x - 2 * self.inner.adjoint(np.maximum(self.inner(x), 0))
        return result

    def _bound(self) -> float:
        square = self.inner.bound * self.inner.bound * (1 + 4 * UNIT)
        return 1.0 if square <= 1 else (2 * square - 1) * (1 + 4 * UNIT)

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        inner = self.inner
        hidden = inner.grown(size)
        back = inner.bound * inner.local(size) + inner.factor * inner.absolute * hidden
        return 2 * back + 4 * UNIT * (size + 2 * inner.bound * hidden) + TINY
