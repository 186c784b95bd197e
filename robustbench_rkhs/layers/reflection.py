r"""Residual layers x - 2 U relu(U^T x + c) with ||U|| <= 1: the base of SLL and CPL.

Proof of the bound, with s >= ||U||^2. At any two points relu(u) - relu(v) = J (u - v) with J diagonal in [0, I], so

.. math:: y - y' = M (x - x'), \qquad M = I - 2 U J U^\top

M is symmetric, and 0 <= U J U^T <= U U^T <= s I, so its eigenvalues lie in [1 - 2 s, 1], and ||M|| <= max(1, 2 s - 1). With
U = W T^(-1/2), s is the smallest number with s T >= W^T W. For convolutions U^T is a convolution and U its exact transpose,
under either padding; on the unbounded grid T is the same at every pixel, so s comes from the rescaled kernel's norm.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.borders import (
    Padding,
    adjoint,
    checked,
    convolve,
    delta_orthogonal,
    entries,
    finite,
    inverse_root,
    norm_and_shape,
    precise,
    unit_peak,
)
from robustbench_rkhs.layers.lowered import hold, lowered
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, constants, fan, rule
from robustbench_rkhs.lipschitz.bounds import spectral, upwards, weights
from robustbench_rkhs.runtime.precision import without_autocast

SHORTEST = 1e-30
"""Hidden units with a smaller sqrt(T) count as zero: b / sqrt(T) would overflow float32."""


class Factor(nn.Module):
    """The weight W^T (inner first), the bias, and U^T = T^(-1/2) W^T with c = T^(-1/2) b."""

    weight: nn.Parameter

    def __init__(self, weight: Float[Tensor, "inner *inputs"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))

    def squares(self, weight: Float[Tensor, "inner *inputs"]) -> Float[Tensor, " inner"]:
        """The diagonal of T for this weight."""
        raise NotImplementedError

    def factor(self) -> tuple[Float[Tensor, "inner *inputs"], Float[Tensor, " inner"]]:
        """U^T and c in float64. This form is exact: T^-1 relu(u) = T^(-1/2) relu(T^(-1/2) u)."""
        with without_autocast(self.weight):
            weight, peak = unit_peak(precise(self.weight))
            squares = self.squares(weight)
            inverse = inverse_root(squares, squares.sqrt() * peak > SHORTEST)
            return weight * inverse.view(-1, *(1,) * (weight.dim() - 1)), precise(self.bias) * inverse / peak


class Reflection(Factor):
    """The dense layer: U^T is (inner, features)."""

    def __init__(self, features: int, inner: int) -> None:
        checked(type(self).__name__, "zeros", features=features, inner=inner)
        super().__init__(nn.init.orthogonal_(torch.empty(inner, features)))

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        u, shift = self.factor()
        return reflected(x, u.to(x.dtype), shift.to(x.dtype))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class ReflectionConv(Factor):
    """The convolutional layer, of stride one: U^T is (inner, channels, kernel, kernel)."""

    def __init__(self, channels: int, inner: int, kernel: int = 3, padding_mode: Padding = "circular") -> None:
        checked(type(self).__name__, padding_mode, channels=channels, inner=inner, kernel=kernel)
        super().__init__(delta_orthogonal(inner, channels, kernel))
        self.padding_mode = padding_mode

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        u, shift = self.factor()
        return reflected_image(x, u.to(x.dtype), shift.to(x.dtype), self.padding_mode)

    def extra_repr(self) -> str:
        inner, channels, kernel, _ = self.weight.shape
        return f"{channels}, {inner}, kernel={kernel}, padding_mode={self.padding_mode!r}"


class Reflected(nn.Module):
    """x - 2 U relu(U^T x + c) with given U, dense or (with a padding mode) a convolution: the plain operation.

    It has no rule; certificates use the layer that it comes from.
    """

    u: Tensor
    shift: Tensor

    def __init__(self, u: Tensor, shift: Tensor, padding_mode: Padding | None) -> None:
        super().__init__()
        hold(self, u=u, shift=shift)
        self.padding_mode = padding_mode

    def forward(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        if self.padding_mode is None:
            return reflected(x, self.u, self.shift)
        return reflected_image(x, self.u, self.shift, self.padding_mode)


def reflected(
    x: Float[Tensor, "*batch features"], u: Float[Tensor, "inner features"], shift: Float[Tensor, " inner"]
) -> Float[Tensor, "*batch features"]:
    """x - 2 U relu(U^T x + c)."""
    return x - 2 * functional.linear(functional.relu(functional.linear(x, u, shift)), u.T)


def reflected_image(
    x: Float[Tensor, "batch channel height width"],
    u: Float[Tensor, "inner channel kernel kernel"],
    shift: Float[Tensor, " inner"],
    padding_mode: Padding,
) -> Float[Tensor, "batch channel height width"]:
    """x - 2 U relu(U^T x + c), U^T a convolution."""
    hidden = functional.relu(convolve(x, u, shift, 1, padding_mode))
    return x - 2 * adjoint(hidden, u, padding_mode)


@lowered.register(Reflection)
@lowered.register(ReflectionConv)
def _(layer: Reflection | ReflectionConv) -> nn.Module:
    u, shift = (value.to(layer.weight.dtype) for value in layer.factor())
    return Reflected(u, shift, layer.padding_mode if isinstance(layer, ReflectionConv) else None)


def certified(kind: type[Factor]) -> type[Factor]:
    """Registers the rules of a dense or convolutional layer, whose proof is at the top of this file."""
    dense = issubclass(kind, Reflection)
    rule.register(kind, _rule if dense else _rule_conv)
    fan.register(kind, _fan if dense else _fan_conv)
    constants.register(kind, _constants if dense else _constants_conv)
    return kind


def _residual(norm: float) -> float:
    """max(1, 2 s - 1), s = norm^2."""
    square = upwards(norm * norm) if norm else 0.0
    return 1.0 if square <= 1 else upwards(2 * square - 1)


def _rule(module: Reflection, shape: tuple[int, ...]) -> Bound:
    u = _factor(module)
    if not shape or shape[-1] != u.shape[1]:
        raise Uncertifiable(f"expected {u.shape[1]} features, found an input of shape {shape}")
    return Bound(_residual(spectral(u)), shape)


def _rule_conv(module: ReflectionConv, shape: tuple[int, ...]) -> Bound:
    norm, _ = norm_and_shape(_factor(module), shape, 1, module.padding_mode)
    return Bound(_residual(norm), shape)


def _factor(module: Factor) -> Tensor:
    finite(module)
    u, shift = module.factor()
    weights(shift, "scaled bias")
    return weights(u, "scaled weight")


def _fan(module: Reflection, inputs: int, outputs: int) -> tuple[int, int]:
    """Two successive products."""
    return (sum(module.weight.shape),) * 2


def _fan_conv(module: ReflectionConv, inputs: int, outputs: int) -> tuple[int, int]:
    return (sum(entries(module.weight, "circular")),) * 2


def _constants(module: Reflection, shape: tuple[int, ...]) -> float:
    """The negative part of the bias is cut off at zero, but is still added."""
    u, shift = module.factor()
    return float(2 * math.sqrt(math.prod(shape[:-1])) * max(1.0, u.norm().item()) * shift.norm().item())


def _constants_conv(module: ReflectionConv, shape: tuple[int, ...]) -> float:
    """As for a dense layer; the taps sum to at most sqrt(their number) times the kernel's length."""
    u, shift = module.factor()
    return float(2 * math.sqrt(math.prod(shape[1:])) * max(1.0, u.shape[-1] * u.norm().item()) * shift.norm().item())
