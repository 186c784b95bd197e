"""Elementwise activations: values, slope intervals and rounding errors."""

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np

from .norms import UNIT
from .operations import Operation, Shape, expected, size

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
EXACT = ("relu", "hardtanh")
"""Activations that only compare and select, so they add no rounding error."""
UNITS = 32
"""Rounding error of the other activations, in units of roundoff of their output and of `constant`."""
erf = np.vectorize(math.erf, otypes=[np.float64])


class Activation(Operation):
    """An elementwise function with its parameters (`settings`, or one `weight` per channel) and slope interval."""

    def __init__(self, inputs: Shape, kind: str, settings: tuple[float, ...] = (), weight: np.ndarray | None = None) -> None:
        expected(all(map(math.isfinite, settings)), f"expected finite settings of {kind}, found {settings}")
        expected(kind not in ("softplus", "celu") or settings[0] > 0, f"expected a positive setting of {kind}, found {settings}")
        expected(kind != "hardtanh" or settings[0] <= settings[1], f"expected limits in order, found {settings}")
        fits = weight is None or (weight.ndim == 1 and bool(inputs) and len(weight) in (1, inputs[0]))
        expected(fits, "expected one slope, or one per channel")
        super().__init__(inputs, inputs)
        self.kind, self.settings = kind, settings
        self.weight = None if weight is None else weight.reshape(-1, *(1,) * (len(inputs) - 1))
        self.constant = self._largest() * math.sqrt(size(inputs))

    def _largest(self) -> float:
        """Upper bound of its value at zero and of constants that are added and subtracted inside."""
        if self.kind in ("elu", "celu"):
            return abs(self.settings[0])
        if self.kind == "hardtanh":
            return max(map(abs, self.settings))
        if self.kind == "softplus":
            return 1 / self.settings[0]
        return {"sigmoid": 1.0, "selu": 2.0}.get(self.kind, 0.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.weight is not None:
            return np.where(x > 0, x, self.weight * x)
        y: np.ndarray = FUNCTIONS[self.kind](x, *self.settings)
        return y

    @cached_property
    def slopes(self) -> tuple[float, float]:
        r"""An interval that holds every slope.

        x Phi(x): phi'' is (2 - x^2) phi, so the slope is largest at sqrt 2: Phi(sqrt 2) + sqrt 2 phi(sqrt 2) < 1.1290, and at -x it
        is one less that at x. x sigmoid(x): x / 4 + 1 / 2 where x tanh(x / 2) = 2, x < 2.3994, so < 1.09986, and likewise at -x.
        x (x + 3) / 6 between -3 and 3: (2 x + 3) / 6.
        """
        if self.weight is not None:
            return min(1.0, float(self.weight.min())), max(1.0, float(self.weight.max()))
        if self.kind == "leaky_relu":
            return min(1.0, self.settings[0]), max(1.0, self.settings[0])
        if self.kind == "elu":
            return min(0.0, self.settings[0]), max(1.0, self.settings[0])
        known = {
            "sigmoid": (0.0, 0.25),
            "gelu": (1 - GELU, GELU),
            "silu": (1 - SILU, SILU),
            "selu": (0.0, SELU_SCALE * SELU_ALPHA * (1 + 4 * UNIT)),
            "hardswish": (-0.5, 1.5),
        }
        return known.get(self.kind, (0.0, 1.0))

    def _bound(self) -> float:
        return max(map(abs, self.slopes))

    @cached_property
    def absolute(self) -> float:
        return self.bound

    def local(self, size: np.ndarray | float) -> np.ndarray | float:
        if self.kind in EXACT:
            return 0.0 * size
        return UNITS * UNIT * (self.bound * size + self.constant) + 1e-290


GELU = ((1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi)) * (1 + 16 * UNIT)
SILU = 2.3994 / 4 + 0.5 + 1e-15


def _curved(x: np.ndarray, alpha: float, width: float = 1.0) -> np.ndarray:
    """x above zero, alpha (exp(x / width) - 1) below."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / width))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "leaky_relu": lambda x, slope: np.where(x > 0, x, slope * x),
    "elu": _curved,
    "celu": lambda x, alpha: _curved(x, alpha, alpha),
    "selu": lambda x: SELU_SCALE * _curved(x, SELU_ALPHA),
    "hardtanh": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "hardswish": lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) / 6,
    "softplus": lambda x, beta: np.logaddexp(0, beta * x) / beta,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
}
