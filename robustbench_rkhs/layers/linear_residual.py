"""Linear residual layers: identity plus a free weight, merged into one matrix for computation and proof."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.borders import (
    Convolution,
    Padding,
    checked,
    convolve,
    entries,
    finite,
    norm_and_shape,
    precise,
)
from robustbench_rkhs.layers.lowered import linear, lowered
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, fan, rule
from robustbench_rkhs.lipschitz.bounds import spectral, weights


class LinearResidual(nn.Module):
    r"""An affine layer near the identity, bounded only by its own norm.

    .. math:: y = (I + W) x + b, \qquad L = \lVert I + W \rVert_2 \le 1 + \lVert W \rVert_2

    W starts random with entries of standard deviation scale / sqrt(features). Cost: one product.
    Source: Hu et al. (LiResNet), NeurIPS 2023.
    """

    def __init__(self, features: int, scale: float = 0.1) -> None:
        super().__init__()
        checked("LinearResidual", "zeros", features=features)
        self.weight = nn.Parameter(torch.randn(features, features) * (scale / math.sqrt(features)))
        self.bias = nn.Parameter(torch.zeros(features))

    def matrix(self) -> Float[Tensor, "features features"]:
        """I + W in float64."""
        weight = precise(self.weight)
        return weight + torch.eye(len(weight), dtype=weight.dtype, device=weight.device)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        return functional.linear(x, self.matrix().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}"


class LinearResidualConv(nn.Module):
    r"""An affine convolution near the identity, of stride one, bounded only by its own norm.

    .. math:: y = x + W * x + b = (\delta + W) * x + b, \qquad L = \lVert \delta + W \rVert_2

    The identity is one tap of the merged kernel, so the bound is that of the sum, not one plus a norm. W starts random with
    entries of standard deviation scale / sqrt(channels kernel^2). Cost: one convolution. Source: as `LinearResidual`.
    """

    def __init__(self, channels: int, kernel: int = 3, padding_mode: Padding = "zeros", scale: float = 0.1) -> None:
        super().__init__()
        checked("LinearResidualConv", padding_mode, channels=channels, kernel=kernel)
        self.padding_mode = padding_mode
        size = (channels, channels, kernel, kernel)
        self.weight = nn.Parameter(torch.randn(size) * (scale / math.sqrt(channels * kernel**2)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def kernel(self) -> Float[Tensor, "channel channel kernel kernel"]:
        """The weight with one added at the centre, in float64."""
        weight = precise(self.weight)
        identity, at = torch.zeros_like(weight), weight.shape[-1] // 2
        identity[:, :, at, at] = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return weight + identity

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        return convolve(x, self.kernel().to(x.dtype), self.bias, 1, self.padding_mode)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, kernel={self.weight.shape[-1]}, padding_mode={self.padding_mode!r}"


@lowered.register
def _(layer: LinearResidual) -> nn.Module:
    return linear(layer.matrix().to(layer.bias.dtype), layer.bias)


@lowered.register
def _(layer: LinearResidualConv) -> nn.Module:
    return Convolution(layer.kernel(), layer.bias, 1, layer.padding_mode)


@rule.register
def _(module: LinearResidual, shape: tuple[int, ...]) -> Bound:
    finite(module)
    if not shape or shape[-1] != len(module.weight):
        raise Uncertifiable(f"expected {len(module.weight)} features, found an input of shape {shape}")
    return Bound(spectral(weights(module.matrix(), "matrix")), shape)


@rule.register
def _(module: LinearResidualConv, shape: tuple[int, ...]) -> Bound:
    finite(module)
    return Bound(*norm_and_shape(weights(module.kernel(), "kernel"), shape, 1, module.padding_mode))


@fan.register
def _(module: LinearResidual, inputs: int, outputs: int) -> tuple[int, int]:
    return len(module.weight), len(module.weight)


@fan.register
def _(module: LinearResidualConv, inputs: int, outputs: int) -> tuple[int, int]:
    return entries(module.weight, module.padding_mode)


for _kind in (LinearResidual, LinearResidualConv):
    affine.register(_kind, lambda module: True)
