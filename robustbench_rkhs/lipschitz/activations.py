"""Elementwise activations: the interval of their slopes, and the rules of those without one in `bounds`."""

import math
from functools import singledispatch

import torch
from torch import nn

from robustbench_rkhs.lipschitz.bounds import UNIT, Bound, Uncertifiable, rule, upwards, weights
from robustbench_rkhs.lipschitz.rounding import constants, fan

GELU_STEEPEST = upwards((1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi))
r"""Largest slope of x Phi(x), 1.1289: its second derivative phi(x) (2 - x^2) is zero at sqrt 2 only (for x > 0), and the slope
there is Phi(sqrt 2) + sqrt 2 phi(sqrt 2). The slope at -x is one less that at x, so the least is 1 - 1.1289."""

GELU_TANH_STEEPEST = 1.12915
r"""Above the largest slope of x (1 + tanh(c (x + a x^3))) / 2, c = sqrt(2 / pi), a = 0.044715: 1.12909, near x = 1.41. The slope at
-x is one less that at x. (tests/test_traced_operations.py proves it on a grid with the bound of the second derivative.)"""
MISH_SLOPES = (-0.1135, 1.08851)
"""An interval around the slopes of x tanh(log(1 + e^x)), which lie in [-0.11322, 1.08850] (proved in the same way)."""

SILU_TURN = 2.3994
r"""Above the root 2.39936 of x tanh(x / 2) = 2, where the slope of x sigmoid(x) is largest: 2.3994 tanh(1.1997) = 2.00006."""
SILU_STEEPEST = upwards(SILU_TURN / 4 + 0.5)
r"""Largest slope of x sigmoid(x), 1.09985: the second derivative s (1 - s) (2 - x (2 s - 1)) is zero where s = 1/2 + 1/x, and the
slope there is s (1 + x (1 - s)) = x / 4 + 1 / 2. The slope at -x is one less that at x."""

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

SMALLEST_THRESHOLD = 20.0
"""nn.Softplus jumps by log(1 + e^-threshold) / beta where it becomes the identity: from this threshold on, a rounding error."""


@singledispatch
def slopes(module: nn.Module) -> tuple[float, float] | None:
    """An interval that contains every slope of an elementwise activation, rounded outwards; None for any other layer.

    Raises Uncertifiable where its options leave it without one.
    """
    return None


@slopes.register(nn.ReLU)
@slopes.register(nn.Tanh)
@slopes.register(nn.Hardtanh)
@slopes.register(nn.ReLU6)
@slopes.register(nn.Softsign)
def _(module: nn.Module) -> tuple[float, float]:
    return 0.0, 1.0


@slopes.register
def _(module: nn.Sigmoid) -> tuple[float, float]:
    return 0.0, 0.25


@slopes.register
def _(module: nn.LeakyReLU) -> tuple[float, float]:
    slope = _finite(module.negative_slope, "slope")
    return min(slope, 1.0), max(slope, 1.0)


@slopes.register
def _(module: nn.ELU) -> tuple[float, float]:
    alpha = _finite(module.alpha, "alpha")
    return min(alpha, 0.0), max(alpha, 1.0)


@slopes.register
def _(module: nn.GELU) -> tuple[float, float]:
    if module.approximate == "tanh":
        return 1 - GELU_TANH_STEEPEST, GELU_TANH_STEEPEST
    return 1 - GELU_STEEPEST, GELU_STEEPEST


@slopes.register
def _(module: nn.SiLU) -> tuple[float, float]:
    return 1 - SILU_STEEPEST, SILU_STEEPEST


@slopes.register
def _(module: nn.Softplus) -> tuple[float, float]:
    if not (math.isfinite(module.beta) and module.beta > 0 and module.threshold >= SMALLEST_THRESHOLD):
        found = f"beta {module.beta:g} and threshold {module.threshold:g}"
        raise Uncertifiable(f"expected a positive beta and a threshold of {SMALLEST_THRESHOLD:g} or more, found {found}")
    return 0.0, 1.0


@slopes.register
def _(module: nn.CELU) -> tuple[float, float]:
    if not (math.isfinite(module.alpha) and module.alpha > 0):
        raise Uncertifiable(f"expected a positive alpha, found {module.alpha}")
    return 0.0, 1.0


@slopes.register
def _(module: nn.SELU) -> tuple[float, float]:
    return 0.0, upwards(SELU_SCALE * SELU_ALPHA)


@slopes.register
def _(module: nn.Hardswish) -> tuple[float, float]:
    """x (x + 3) / 6 between -3 and 3: slopes (2 x + 3) / 6."""
    return -0.5, 1.5


@slopes.register
def _(module: nn.Mish) -> tuple[float, float]:
    return MISH_SLOPES


@slopes.register
def _(module: nn.Hardsigmoid) -> tuple[float, float]:
    return 0.0, upwards(1 / 6)


@slopes.register
def _(module: nn.PReLU) -> tuple[float, float]:
    weight = weights(module.weight, "slope")
    return min(weight.min().item(), 1.0), max(weight.max().item(), 1.0)


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise Uncertifiable(f"expected a finite {name}, found {value}")
    return float(value)


@rule.register(nn.GELU)
@rule.register(nn.SiLU)
@rule.register(nn.Softplus)
@rule.register(nn.Hardtanh)
@rule.register(nn.ReLU6)
@rule.register(nn.Softsign)
@rule.register(nn.CELU)
@rule.register(nn.SELU)
@rule.register(nn.Hardswish)
@rule.register(nn.Mish)
@rule.register(nn.Hardsigmoid)
def _(module: nn.Module, shape: tuple[int, ...]) -> Bound:
    """The steepest slope."""
    found = slopes(module)
    assert found is not None
    return Bound(max(abs(slope) for slope in found), shape)


@rule.register
def _(module: nn.PReLU, shape: tuple[int, ...]) -> Bound:
    if module.num_parameters != 1 and (not shape or shape[0] != module.num_parameters):
        raise Uncertifiable(f"expected {module.num_parameters} channels, found an input of shape {shape}")
    low, high = slopes(module) or (0.0, 0.0)
    return Bound(max(abs(low), abs(high)), shape)


_NEW = (
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Hardtanh,
    nn.ReLU6,
    nn.Softsign,
    nn.CELU,
    nn.SELU,
    nn.Hardswish,
    nn.PReLU,
    nn.Mish,
    nn.Hardsigmoid,
)
for _kind in _NEW:
    fan.register(_kind, lambda module, inputs, outputs: (1, 1))


@constants.register
def _(module: nn.CELU, shape: tuple[int, ...]) -> float:
    """The rounding of alpha (exp(x / alpha) - 1) is relative to alpha."""
    return abs(module.alpha) * math.sqrt(math.prod(shape))


@constants.register
def _(module: nn.SELU, shape: tuple[int, ...]) -> float:
    return 2.0 * math.sqrt(math.prod(shape))


@constants.register(nn.Hardtanh)
@constants.register(nn.ReLU6)
def _(module: nn.Hardtanh, shape: tuple[int, ...]) -> float:
    """The limits at which it clips are exact; twice their size is more than enough."""
    return 2 * max(abs(module.min_val), abs(module.max_val), 0.0) * math.sqrt(math.prod(shape))


@constants.register
def _(module: nn.Softplus, shape: tuple[int, ...]) -> float:
    """log 2 / beta at zero, and the jump at its threshold, which counts as the rounding error of a constant."""
    jump = math.log1p(math.exp(-module.threshold)) / module.beta
    return (1 / module.beta + jump / (16 * UNIT)) * math.sqrt(math.prod(shape))


def elementwise(module: nn.Module) -> bool:
    """Whether the layer is an activation with an interval of slopes."""
    with torch.no_grad():
        try:
            return slopes(module) is not None
        except Uncertifiable:
            return False
