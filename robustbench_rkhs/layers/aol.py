"""Almost-orthogonal layers: a free weight rescaled by row or by column so that its norm is at most one."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.activations import Activation, activated, activation_layers, even
from robustbench_rkhs.layers.borders import (
    Convolution,
    Padding,
    checked,
    convolve,
    correlation,
    delta_orthogonal,
    entries,
    finite,
    inverse_root,
    norm_and_shape,
    precise,
    unit_peak,
)
from robustbench_rkhs.layers.lowered import chain, linear, lowered
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, constants, fan, rule
from robustbench_rkhs.lipschitz.bounds import spectral, weights
from robustbench_rkhs.runtime.precision import without_autocast

SMALLEST = 1e-250
"""Column sums below this (with a largest entry of one) count as zero: a zero column stays zero."""


class AOL(nn.Module):
    r"""A dense layer of norm at most one, with an activation.

    .. math:: y = \phi(P D x + b), \qquad D = \mathrm{diag}\Big(\sum_j |P^\top P|_{ij}\Big)^{-1/2}

    For every x, sum_ij |P^T P|_ij |x_i x_j| <= sum_i x_i^2 sum_j |P^T P|_ij: so P^T P <= D^-2, and ||P D|| <= 1. With more
    inputs than outputs the rows are rescaled instead, D P by |P P^T|: the same on the transpose, cheaper, and tight for
    orthogonal rows, where rescaled columns are far below norm one. Initialised (semi-)orthogonal, with norm one. The certified
    bound is the norm of the rescaled weight as evaluated in float64. A column (row) of zeros stays zero.
    Raises UserError for sizes below 1, and for an odd number of outputs with `maxmin`.
    Cost: a product of order min(inputs, outputs) inputs outputs per forward pass. Source: Prach & Lampert, ECCV 2022.
    """

    def __init__(self, in_features: int, out_features: int, activation: Activation = "relu") -> None:
        super().__init__()
        checked("AOL", "zeros", in_features=in_features, out_features=out_features)
        even("AOL", activation, out_features)
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(out_features, in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """The rescaled weight, in float64."""
        with without_autocast(self.weight):
            free, _ = unit_peak(precise(self.weight))
            wide = self.in_features > self.out_features
            sums = (free @ free.T if wide else free.T @ free).abs().sum(1)
            scale = inverse_root(sums, sums > SMALLEST)
            return scale[:, None] * free if wide else free * scale

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return activated(functional.linear(x, self.matrix().to(x.dtype), self.bias), self.activation, -1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, activation={self.activation!r}"


class AOLConv(nn.Module):
    r"""A convolution of norm at most one, with an activation; n pixels become ceil(n / stride).

    .. math:: y = \phi\big((P D) * x + b\big), \qquad D_i = \Big(\sum_{j, d} |(P \star P)_{ij}(d)|\Big)^{-1/2}

    where (P * P)_ij(d) = sum_{o,t} P_oi(t) P_oj(t + d): the dense layer's column sums, over channels and shifts. With a
    stride s the sums run within the convolution of the s x s blocks (space to depth), which is the same operator: one D
    per channel and position in the block, or per output where these are fewer (as for `AOL`). The proof is that of
    `AOL` on the unbounded grid, of which both paddings are a part or a quotient. Circular images are first made divisible by
    the stride, with zeros at their end; a circular kernel that would wrap more than once raises in the forward pass.
    Initialised orthogonal on blocks. Cost: a correlation of the kernel with itself per forward pass.
    Source: Prach & Lampert, ECCV 2022.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding_mode: Padding = "circular",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        checked("AOLConv", padding_mode, in_channels=in_channels, out_channels=out_channels, kernel=kernel, stride=stride)
        even("AOLConv", activation, out_channels)
        self.stride, self.padding_mode, self.activation = stride, padding_mode, activation
        self.weight = nn.Parameter(delta_orthogonal(out_channels, in_channels, kernel, stride))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def kernel(self) -> Float[Tensor, "outputs inputs kernel kernel"]:
        """The rescaled weight, in float64."""
        with without_autocast(self.weight):
            free, _ = unit_peak(precise(self.weight))
            size, stride = free.shape[-1], self.stride
            blocks = functional.pixel_unshuffle(functional.pad(free, (0, -size % stride) * 2), stride)
            wide = blocks.shape[1] > blocks.shape[0]
            sums = correlation(blocks if wide else blocks.transpose(0, 1)).sum(1)
            scale = inverse_root(sums, sums > SMALLEST)
            rescaled = blocks * (scale[:, None, None, None] if wide else scale[:, None, None])
            return functional.pixel_shuffle(rescaled, stride)[..., :size, :size]

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        y = convolve(x, self.kernel().to(x.dtype), self.bias, self.stride, self.padding_mode)
        return activated(y, self.activation)

    def extra_repr(self) -> str:
        sizes = f"{self.weight.shape[1]}, {self.weight.shape[0]}, kernel={self.weight.shape[-1]}, stride={self.stride}"
        return f"{sizes}, padding_mode={self.padding_mode!r}, activation={self.activation!r}"


@rule.register
def _(module: AOL, shape: tuple[int, ...]) -> Bound:
    finite(module)
    if not shape or shape[-1] != module.in_features:
        raise Uncertifiable(f"expected {module.in_features} features, found an input of shape {shape}")
    return Bound(spectral(weights(module.matrix(), "matrix")), (*shape[:-1], module.out_features))


@rule.register
def _(module: AOLConv, shape: tuple[int, ...]) -> Bound:
    finite(module)
    return Bound(*norm_and_shape(weights(module.kernel(), "kernel"), shape, module.stride, module.padding_mode))


@lowered.register
def _(layer: AOL) -> nn.Module:
    return chain(linear(layer.matrix().to(layer.bias.dtype), layer.bias), *activation_layers(layer.activation, -1))


@lowered.register
def _(layer: AOLConv) -> nn.Module:
    convolution = Convolution(layer.kernel(), layer.bias, layer.stride, layer.padding_mode)
    return chain(convolution, *activation_layers(layer.activation))


for _kind in (AOL, AOLConv):
    affine.register(_kind, lambda module: module.activation == "none")


@fan.register
def _(module: AOL, inputs: int, outputs: int) -> tuple[int, int]:
    return module.in_features, module.out_features


@fan.register
def _(module: AOLConv, inputs: int, outputs: int) -> tuple[int, int]:
    return entries(module.weight, module.padding_mode)


@constants.register
def _(module: AOL, shape: tuple[int, ...]) -> float:
    """The part of the bias that the activation cuts off is still added and rounded."""
    return float(math.sqrt(math.prod(shape[:-1])) * module.bias.norm().item())


@constants.register
def _(module: AOLConv, shape: tuple[int, ...]) -> float:
    outputs = math.prod(-(-size // module.stride) for size in shape[1:])
    return float(math.sqrt(outputs) * module.bias.norm().item())
