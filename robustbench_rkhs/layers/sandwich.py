"""Sandwich layers: norm at most one by construction, and proved on the evaluated matrices."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.cayley import Start, published_start
from robustbench_rkhs.layers.lowered import hold, linear, lowered
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, constants, fan, rule
from robustbench_rkhs.lipschitz.bounds import spectral, upwards, weights
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.precision import without_autocast

BALANCED = 3 - 2 * math.sqrt(2)
"""z with (1 - z) / (1 + z) = 1 / sqrt 2: V^T V = z I gives A and B singular values 1 / sqrt 2, and 2 A^T B singular
values one."""


class _Cayley(nn.Module):
    """The pair A (out x out), B (out x in) with A A^T + B B^T = I, from a free matrix and its length."""

    def __init__(self, in_features: int, out_features: int, start: Start = "identity") -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise UserError(f"{type(self).__name__}: expected sizes of at least 1, found {in_features} and {out_features}")
        self.in_features, self.out_features = in_features, out_features
        if start == "published":
            weight, bias = published_start((in_features + out_features, out_features), in_features + out_features)
            self.weight, self.bias, self.alpha = nn.Parameter(weight), nn.Parameter(bias), nn.Parameter(weight.norm())
            return
        lower = torch.empty(in_features, out_features)
        nn.init.orthogonal_(lower)
        if in_features == out_features:  # relu after relu is relu: deep stacks pass their gradient through
            nn.init.eye_(lower)
        skew = torch.randn(out_features, out_features) * (0.02 / math.sqrt(out_features))
        weight = torch.cat([skew, -math.sqrt(BALANCED) * lower])
        self.weight = nn.Parameter(weight)
        self.alpha = nn.Parameter(weight.norm())
        self.bias = nn.Parameter(torch.zeros(out_features))

    def matrices(self) -> tuple[Float[Tensor, "outputs outputs"], Float[Tensor, "outputs inputs"]]:
        """A and B, computed at every call, in float64 (which is certified) where the device supports it.

        In float32, large weights lose the orthogonality: at alpha = 1e4 the norm was 2. A weight of zeros counts as zeros.
        """
        weight = self.weight.to(torch.float32 if self.weight.device.type == "mps" else torch.float64)
        with without_autocast(weight):
            peak = weight.detach().abs().amax()
            scaled = weight / torch.where(peak > 0, peak, 1)  # no square of an entry under- or overflows
            free = scaled * (self.alpha.to(weight.dtype) / scaled.norm().clamp_min(1e-6))
            upper, lower = free[: self.out_features], free[self.out_features :]
            identity = torch.eye(self.out_features, device=weight.device, dtype=weight.dtype)
            skew = upper - upper.T + lower.T @ lower
            both = torch.cat([identity - skew, -2 * lower])  # (I - Z) and (I + Z)^-1 commute
            q = torch.linalg.solve(identity + skew, both, left=False)
        return q[: self.out_features].T, q[self.out_features :].T

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Sandwich(_Cayley):
    r"""A dense layer with ReLU inside, 1-Lipschitz in l2 for every value of its parameters.

    .. math:: y = \sqrt2 A^\top \Psi\, \mathrm{relu}\big(\sqrt2\, \Psi^{-1} B x + b\big), \qquad
              A A^\top + B B^\top = I, \quad \Psi = \mathrm{diag}(e^\psi)

    A and B are the blocks of the Cayley transform of alpha W / ||W||_F. As relu(t u) = t relu(u) for t > 0, it is
    evaluated as sqrt2 A^T relu(sqrt2 B x + Psi b), which never divides by zero. `start: identity`: an orthogonal
    layer followed by ReLU (the identity, where sizes agree), so that gradients do not vanish in deep networks; `published`: free
    matrix and bias uniform, as the published code has them.
    The certified bound is ||[A B]||_2^2 of the matrices as evaluated in float64 from the stored parameters, for the network
    in real arithmetic; evaluation in float32 adds rounding errors of the order of 1e-6.
    Cost: a solve of order `out_features` per forward pass. Source: Wang & Manchester, ICML 2023.
    """

    def __init__(self, in_features: int, out_features: int, start: Start = "identity") -> None:
        super().__init__(in_features, out_features, start)
        self.psi = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        a, b = self.matrices()
        shift = self.psi.exp() * self.bias
        hidden = functional.relu(functional.linear(x, math.sqrt(2) * b.to(x.dtype), shift))
        return functional.linear(hidden, math.sqrt(2) * a.T.to(x.dtype))


class SandwichLinear(_Cayley):
    r"""An affine layer of norm at most one; it can represent every such matrix.

    .. math:: y = 2 A^\top B x + b, \qquad A A^\top + B B^\top = I

    The certified bound is the exact norm of 2 A^T B as evaluated in float64 from the stored parameters.
    Cost: a solve of order `out_features` per forward pass. Source: Wang & Manchester, ICML 2023, Proposition 3.3.
    """

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        a, b = self.matrices()
        return functional.linear(x, (2 * a.T @ b).to(x.dtype), self.bias)


class SandwichHead(_Cayley):
    r"""An affine layer of norm at most one, as the published code ends its networks.

    .. math:: y = B x + b, \qquad A A^\top + B B^\top = I

    The certified bound is the exact norm of B as evaluated in float64 from the stored parameters. It reaches every matrix of norm
    below one, as `SandwichLinear` does by 2 A^T B with other parameters. Cost: a solve of order `out_features` per forward pass.
    Source: the code of Wang & Manchester, ICML 2023.
    """

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        _, b = self.matrices()
        return functional.linear(x, b.to(x.dtype), self.bias)


class Sandwiched(nn.Module):
    """sqrt2 A^T relu(sqrt2 B x + shift) with given matrices: the plain operation.

    It has no rule; certificates use the layer that it comes from.
    """

    a: Tensor
    b: Tensor
    inner: Tensor
    outer: Tensor
    shift: Tensor

    def __init__(
        self, a: Float[Tensor, "outputs outputs"], b: Float[Tensor, "outputs inputs"], shift: Float[Tensor, " outputs"]
    ) -> None:
        super().__init__()
        hold(self, a=a, b=b, inner=math.sqrt(2) * b, outer=math.sqrt(2) * a.T, shift=shift)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        hidden = functional.relu(functional.linear(x, self.inner, self.shift))
        return functional.linear(hidden, self.outer)


def _matrices(module: _Cayley, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A and B of a layer whose parameters are finite. Raises Uncertifiable otherwise, or where the solve fails."""
    for name, parameter in module.named_parameters():
        weights(parameter, name)
    if not shape or shape[-1] != module.weight.shape[0] - module.out_features:
        raise Uncertifiable(f"expected {module.weight.shape[0] - module.out_features} features, found an input of shape {shape}")
    try:
        a, b = module.matrices()
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise Uncertifiable("its Cayley transform is singular in float64: the weights are too large") from None
    return weights(a, "matrix A"), weights(b, "matrix B")


@lowered.register
def _(layer: Sandwich) -> nn.Module:
    a, b = (matrix.to(layer.weight.dtype) for matrix in layer.matrices())
    return Sandwiched(a, b, layer.psi.exp() * layer.bias)


@lowered.register
def _(layer: SandwichLinear) -> nn.Module:
    a, b = layer.matrices()
    return linear((2 * a.T @ b).to(layer.weight.dtype), layer.bias)


@lowered.register
def _(layer: SandwichHead) -> nn.Module:
    _, b = layer.matrices()
    return linear(b.to(layer.weight.dtype), layer.bias)


@rule.register
def _(module: Sandwich, shape: tuple[int, ...]) -> Bound:
    """relu is J-slope-restricted with 0 <= J <= I: y has slope 2 A^T J B, and ||2 A^T J B|| <= ||A A^T + B B^T|| =
    ||[A B]||^2."""
    a, b = _matrices(module, shape)
    weights(module.psi.exp() * module.bias, "scaled bias")
    norm = spectral(torch.cat([a, b], dim=1))
    return Bound(upwards(norm * norm) if norm else 0.0, (*shape[:-1], module.out_features))


@rule.register
def _(module: SandwichLinear, shape: tuple[int, ...]) -> Bound:
    a, b = _matrices(module, shape)
    return Bound(spectral(weights(2 * a.T @ b, "matrix")), (*shape[:-1], module.out_features))


@rule.register
def _(module: SandwichHead, shape: tuple[int, ...]) -> Bound:
    _, b = _matrices(module, shape)
    return Bound(spectral(b), (*shape[:-1], module.out_features))


affine.register(SandwichLinear, lambda module: True)
affine.register(SandwichHead, lambda module: True)
fan.register(Sandwich, lambda module, inputs, outputs: (inputs + outputs,) * 2)  # two successive products


@constants.register
def _(module: Sandwich, shape: tuple[int, ...]) -> float:
    """The negative part of the bias is cut off at zero, but is still added."""
    copies = math.sqrt(math.prod(shape[:-1]))
    a, _ = module.matrices()
    return float(2 * copies * max(1.0, a.norm().item()) * (module.psi.exp() * module.bias).norm().item())
