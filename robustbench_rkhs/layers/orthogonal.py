"""Cayley-orthogonal layers: affine maps of norm one, then an activation."""

import math

import torch
from jaxtyping import Complex, Float64
from torch import Tensor, nn

from robustbench_rkhs.layers.activations import Activation
from robustbench_rkhs.layers.cayley import Start, at_length, cayley, published_start, scaled_cayley
from robustbench_rkhs.layers.fourier import delta, spectrum
from robustbench_rkhs.layers.maps import DenseMap, FourierMap, dense_bound, fourier_bound
from robustbench_rkhs.lipschitz import rule


def started(rows: int, columns: int) -> Tensor:
    """A free matrix whose Cayley transform is near the identity (square), else near an isometry padded with zeros."""
    upper = torch.randn(columns, columns) * (0.02 / math.sqrt(columns))
    lower = torch.empty(rows - columns, columns)
    if lower.numel():
        nn.init.orthogonal_(lower)
    return torch.cat([upper, lower])


class Orthogonal(DenseMap):
    r"""A dense layer whose matrix has orthonormal columns (rows, where it is wide), then an activation.

    .. math:: y = \sigma(Q x + b), \qquad Q = \mathrm{Cayley}(\alpha W / \lVert W \rVert_F)

    The certified bound is the norm of Q as evaluated in float64 from the stored parameters. Square layers start near the identity,
    or as published (`start`). Cost: an inverse of order min(in, out) at each forward pass. Source: Trockman & Kolter, ICLR 2021.
    """

    def __init__(self, in_features: int, out_features: int, activation: Activation = "relu", start: Start = "identity") -> None:
        super().__init__(in_features, out_features, activation)
        weight = started(max(in_features, out_features), min(in_features, out_features))
        self.weight = nn.Parameter(weight if out_features >= in_features else weight.T.contiguous())
        if start == "published":
            free, bias = published_start((in_features, out_features), in_features)
            self.weight, self.bias = nn.Parameter(free.T.contiguous()), nn.Parameter(bias)
        self.alpha = nn.Parameter(self.weight.detach().norm())

    def matrix(self) -> Float64[Tensor, "outputs inputs"]:
        return scaled_cayley(self.wide(self.weight), self.alpha)


class OrthogonalConv(FourierMap):
    r"""A convolution that is orthogonal at each frequency of its torus, then an activation.

    .. math:: \hat y_\theta = Q_\theta \hat x_\theta + b, \qquad
              Q_\theta = \mathrm{Cayley}\Big(\frac{\alpha}{\lVert W \rVert_F} \sum_t W_t e^{-i \langle \theta, t \rangle}\Big)

    Strides fold pixels into channels. The certified bound is the largest norm over the frequencies, in float64. Square layers start
    near the identity. Cost: two Fourier transforms, and an inverse of order min(s^2 in, out) for each of m (n / 2 + 1) frequencies.
    Source: Trockman & Kolter, ICLR 2021.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding_mode: str = "circular",
        activation: Activation = "relu",
        start: Start = "identity",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding_mode, activation)
        rows, columns = max(out_channels, self.folded_channels), min(out_channels, self.folded_channels)
        noise = torch.randn(rows, columns, self.taps, self.taps) * (0.02 / math.sqrt(columns * self.taps**2))
        self.weight = nn.Parameter(noise + delta(rows, columns, self.taps, started(rows, columns)))
        if start == "published":
            fan_in = self.folded_channels * self.taps**2
            free, _ = published_start((rows, columns, self.taps, self.taps), fan_in)
            _, bias = published_start((1, out_channels), fan_in)
            self.weight, self.bias = nn.Parameter(free), nn.Parameter(bias)
        self.alpha = nn.Parameter(self.weight.detach().norm())

    def matrices(self, torus: tuple[int, int]) -> Complex[Tensor, "half outputs folded"]:
        weight, alpha = self.exact(self.weight, self.alpha)
        q = cayley(spectrum(at_length(weight, alpha), torus))
        return q if self.out_channels >= self.folded_channels else q.mH


rule.register(Orthogonal, dense_bound)
rule.register(OrthogonalConv, fourier_bound)
