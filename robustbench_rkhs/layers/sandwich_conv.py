"""Sandwich convolutions: norm at most one by construction at each frequency, and proved on the evaluated matrices."""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.cayley import Start, at_length, cayley, published_start
from robustbench_rkhs.layers.fourier import FourierConv, delta, multiplied, spectrum
from robustbench_rkhs.layers.lowered import lowered
from robustbench_rkhs.layers.maps import FourierMap, fourier_bound
from robustbench_rkhs.layers.sandwich import BALANCED
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, constants, fan, rule
from robustbench_rkhs.lipschitz.bounds import spectral, upwards, weights
from robustbench_rkhs.runtime.precision import without_autocast


def started(inputs: int, outputs: int, taps: int) -> Tensor:
    """A free kernel of (outputs + inputs, outputs), at each frequency near an orthogonal layer (the identity where sizes agree)."""
    lower = torch.empty(inputs, outputs)
    nn.init.orthogonal_(lower)
    if inputs == outputs:  # relu after relu is relu: deep stacks pass their gradient through
        nn.init.eye_(lower)
    noise = torch.randn(outputs, outputs, taps, taps) * (0.02 / math.sqrt(outputs * taps**2))
    return torch.cat([noise, delta(inputs, outputs, taps, -math.sqrt(BALANCED) * lower)])


class SandwichConv(FourierConv):
    r"""A convolution with ReLU inside, 1-Lipschitz in l2 for every value of its parameters.

    .. math:: y = \sqrt2 A^* \Psi\, \mathrm{relu}\big(\sqrt2\, \Psi^{-1} B x + b\big), \qquad
              A_\theta A_\theta^* + B_\theta B_\theta^* = I \text{ at each frequency } \theta

    [A B]* is the Cayley transform of alpha / ||W||_F times the kernel's spectrum, Psi = diag(e^psi) one number per channel. As
    relu(t u) = t relu(u) for t > 0 it is evaluated as sqrt2 A* relu(sqrt2 B x + Psi b). Strides fold pixels into channels;
    `zeros` keeps the hidden image on the whole torus. Initialised as the identity followed by ReLU, where sizes agree, so that
    gradients do not vanish in deep networks. The certified bound is max_theta ||[A B]||^2 in float64 from the stored parameters.
    Cost: four Fourier transforms, and an inverse of order `out` for each of m (n / 2 + 1) frequencies.
    Source: Wang & Manchester, ICML 2023.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding_mode: str = "circular",
        start: Start = "identity",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding_mode)
        weight, bias = started(self.folded_channels, out_channels, self.taps), torch.zeros(out_channels)
        if start == "published":
            weight, bias = published_start(tuple(weight.shape), len(weight) * self.taps**2)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.alpha = nn.Parameter(self.weight.detach().norm())
        self.psi = nn.Parameter(torch.zeros(out_channels))

    def matrices(
        self, torus: tuple[int, int]
    ) -> tuple[Complex[Tensor, "half outputs outputs"], Complex[Tensor, "half outputs folded"]]:
        """A* and B at each frequency."""
        weight, alpha = self.exact(self.weight, self.alpha)
        q = cayley(spectrum(at_length(weight, alpha), torus))
        return q[:, : self.out_channels], q[:, self.out_channels :].mH

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        with without_autocast(x):
            return self.mapped(x, *self.matrices(self.torus(*x.shape[-2:])))

    def mapped(self, x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
        """The layer with given matrices."""
        torus, (rows, columns) = self.torus(*x.shape[-2:]), self.places(*x.shape[-2:])
        x = self.folded(x if x.dtype == torch.float64 else x.float())
        kind, shift = x.dtype.to_complex(), (self.psi.exp() * self.bias).to(x.dtype)[:, None, None]
        hidden = functional.relu(multiplied(x, math.sqrt(2) * inner.to(kind), torus) + shift)
        y = multiplied(hidden, math.sqrt(2) * outer.to(kind), torus)
        return y[..., :rows, :columns]


class FourierSandwich(nn.Module):
    """A Sandwich convolution as a plain operation. Matrices are computed once per image size; the weights must not change.

    It has no rule; certificates use the layer that it comes from.
    """

    def __init__(self, layer: SandwichConv) -> None:
        super().__init__()
        self.layer = layer
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        torus = self.layer.torus(*x.shape[-2:])
        if torus not in self._known:
            dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
            with torch.inference_mode(False), torch.no_grad():
                outer, inner = self.layer.matrices(torus)
                self._known[torus] = outer.to(dtype), inner.to(dtype)
        return self.layer.mapped(x, *self._known[torus])


class SandwichConvLinear(FourierMap):
    r"""An affine convolution of norm at most one; at each frequency it can represent every such matrix.

    .. math:: \hat y_\theta = 2 A_\theta^* B_\theta\, \hat x_\theta + b, \qquad A_\theta A_\theta^* + B_\theta B_\theta^* = I

    The certified bound is the largest norm of 2 A* B over the frequencies, in float64. Cost: two Fourier transforms, an inverse and
    a product of order `out` per frequency. Source: Wang & Manchester, ICML 2023, Proposition 3.3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, padding_mode: str = "circular"
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding_mode, "none")
        self.weight = nn.Parameter(started(self.folded_channels, out_channels, self.taps))
        self.alpha = nn.Parameter(self.weight.detach().norm())

    def matrices(self, torus: tuple[int, int]) -> Complex[Tensor, "half outputs folded"]:
        weight, alpha = self.exact(self.weight, self.alpha)
        q = cayley(spectrum(at_length(weight, alpha), torus))
        return 2 * q[:, : self.out_channels] @ q[:, self.out_channels :].mH


@lowered.register
def _(layer: SandwichConv) -> nn.Module:
    return FourierSandwich(layer)


@rule.register
def _(module: SandwichConv, shape: tuple[int, ...]) -> Bound:
    """The slope is 2 A* J B with 0 <= J <= I on the torus: its norm is at most the largest ||[A B]||^2 over the
    frequencies, since A and B on the torus are block diagonal in frequency and J acts between them."""
    height, width = module.checked(shape)
    outer, inner = module.matrices(module.torus(height, width))
    weights(module.psi.exp() * module.bias, "scaled bias")
    both = torch.cat([outer.mH, inner], dim=2)
    if not both.isfinite().all():
        raise Uncertifiable("its matrices are not finite: the weights are too large")
    norm = spectral(both)
    return Bound(upwards(norm * norm) if norm else 0.0, (module.out_channels, *module.places(height, width)))


@fan.register
def _(module: SandwichConv, inputs: int, outputs: int) -> tuple[int, int]:
    """Four transforms and two products, each with sums over at most the whole torus."""
    both = 8 * (inputs + outputs + module.folded_channels * module.taps**2 * module.stride**2)
    return both, both


@constants.register
def _(module: SandwichConv, shape: tuple[int, ...]) -> float:
    """The bias at each point of the torus, also where the ReLU cuts it off."""
    points = math.prod(module.torus(*shape[-2:]))
    outer, _ = module.matrices(module.torus(*shape[-2:]))
    return float(2 * math.sqrt(points) * max(1.0, spectral(outer)) * (module.psi.exp() * module.bias).norm().item())


rule.register(SandwichConvLinear, fourier_bound)
