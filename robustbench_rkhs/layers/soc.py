"""Skew-orthogonal layers: the matrix exponential of a skew-symmetric matrix, dense or per frequency."""

import math

import torch
from jaxtyping import Complex, Float64
from torch import Tensor, nn

from robustbench_rkhs.layers.activations import Activation
from robustbench_rkhs.layers.fourier import spectrum
from robustbench_rkhs.layers.maps import DenseMap, FourierMap, dense_bound, fourier_bound
from robustbench_rkhs.lipschitz import rule

START = 0.1
"""Size of the first free matrices: layers start near the identity."""


class SOC(DenseMap):
    r"""A dense layer whose matrix is the exponential of a skew-symmetric one (its first rows or columns, where it is not square).

    .. math:: y = \sigma(Q x + b), \qquad Q = \exp(W - W^\top), \quad Q^\top Q = I

    The certified bound is the norm of Q as evaluated in float64 from the stored parameters. Starts near the identity.
    Cost: a matrix exponential of order max(in, out) at each forward pass. Source: Singla & Feizi, ICML 2021, for convolutions.
    """

    def __init__(self, in_features: int, out_features: int, activation: Activation = "relu") -> None:
        super().__init__(in_features, out_features, activation)
        order = max(in_features, out_features)
        self.weight = nn.Parameter(torch.randn(order, order) * (START / math.sqrt(order)))

    def matrix(self) -> Float64[Tensor, "outputs inputs"]:
        weight = self.wide(self.weight)
        whole: Tensor = torch.linalg.matrix_exp(weight - weight.T)
        return whole[: self.out_features, : self.in_features]


class SOCConv(FourierMap):
    r"""A convolution that is the exponential of a skew-symmetric convolution, then an activation.

    .. math:: \hat y_\theta = Q_\theta \hat x_\theta + b, \qquad
              Q_\theta = \exp(W_\theta - W_\theta^*), \quad Q_\theta^* Q_\theta = I

    The published layer sums the first terms of the exponential's series in the image; here it is taken at each frequency of the
    torus, to rounding, so that nothing is cut off. Strides fold pixels into channels; where channels differ in number, zeros are
    appended or the last ones dropped. The certified bound is the largest norm over the frequencies, in float64.
    Cost: two Fourier transforms, and a matrix exponential of order max(s^2 in, out) for each of m (n / 2 + 1) frequencies.
    Source: Singla & Feizi, "Skew Orthogonal Convolutions", ICML 2021.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding_mode: str = "circular",
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding_mode, activation)
        order = max(out_channels, self.folded_channels)
        self.weight = nn.Parameter(torch.randn(order, order, self.taps, self.taps) * (START / math.sqrt(order * self.taps**2)))

    def matrices(self, torus: tuple[int, int]) -> Complex[Tensor, "half outputs folded"]:
        (weight,) = self.exact(self.weight)
        free = spectrum(weight, torus)
        whole: Tensor = torch.linalg.matrix_exp(free - free.mH)
        return whole[:, : self.out_channels, : self.folded_channels]


rule.register(SOC, dense_bound)
rule.register(SOCConv, fourier_bound)
