"""Block-reflector orthogonal layers: orthogonal by a low-rank reflection, dense or per frequency."""

import math

import torch
from jaxtyping import Complex, Float64, Inexact
from torch import Tensor, nn

from robustbench_rkhs.layers.activations import Activation
from robustbench_rkhs.layers.fourier import spectrum
from robustbench_rkhs.layers.maps import DenseMap, FourierMap, dense_bound, fourier_bound
from robustbench_rkhs.lipschitz import rule
from robustbench_rkhs.nodes.node import UserError

RIDGE = 1e-6
"""Share of its trace that is added to the Gram matrix's diagonal: a lost rank reflects less, without a division by zero."""


def reflector(free: Inexact[Tensor, "*batch rows rank"]) -> Inexact[Tensor, "*batch rows rows"]:
    r"""The reflection at the complement of the columns' span.

    .. math:: Q = I - 2 V (V^* V + \epsilon I)^{-1} V^*, \qquad Q^* Q = I \text{ at } \epsilon = 0, \quad \lVert Q \rVert \le 1

    for every epsilon >= 0, here 1e-6 of the trace. V is scaled to a largest entry of one first, so that no square overflows.
    Cost: a Cholesky factor of order `rank`, a triangular solve and a product.
    Source: Lai et al., "Enhancing certified robustness via block reflector orthogonal layers", ICML 2025.
    """
    peak = free.detach().abs().amax()
    v = free / torch.where(peak > 0, peak, 1)
    identity = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    gram = v.mH @ v
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).real.sum(-1).clamp_min(RIDGE)
    factor = torch.linalg.cholesky(gram + ridge[..., None, None] * identity)
    half = torch.linalg.solve_triangular(factor, v.mH, upper=False)  # V (L L*)^-1 V* = (L^-1 V*)* (L^-1 V*)
    result: Tensor = torch.eye(v.shape[-2], dtype=v.dtype, device=v.device) - 2 * half.mH @ half
    return result


def _rank(layer: str, rank: int | None, order: int) -> int:
    """The rank, by default half the order. Raises UserError outside 1 to the order."""
    rank = max(1, order // 2) if rank is None else rank
    if not 1 <= rank <= order:
        raise UserError(f"{layer}: expected a rank of 1 to {order}, found {rank}")
    return rank


class BRO(DenseMap):
    r"""A dense layer whose matrix is a block reflector (its first rows or columns, where it is not square), then an activation.

    .. math:: y = \sigma(Q x + b), \qquad Q = I - 2 V (V^\top V)^{-1} V^\top

    The certified bound is the norm of Q as evaluated in float64. Cost: a Cholesky factor of order `rank` and a product.
    Source: Lai et al., ICML 2025.
    """

    def __init__(self, in_features: int, out_features: int, rank: int | None = None, activation: Activation = "relu") -> None:
        super().__init__(in_features, out_features, activation)
        order = max(in_features, out_features)
        self.rank = _rank("BRO", rank, order)
        self.weight = nn.Parameter(torch.randn(order, self.rank) / math.sqrt(order))

    def matrix(self) -> Float64[Tensor, "outputs inputs"]:
        return reflector(self.wide(self.weight))[: self.out_features, : self.in_features]


class BROConv(FourierMap):
    r"""A convolution that is a block reflector at each frequency of its torus, then an activation.

    .. math:: \hat y_\theta = Q_\theta \hat x_\theta + b, \qquad Q_\theta = I - 2 V_\theta (V_\theta^* V_\theta)^{-1} V_\theta^*

    Strides fold pixels into channels; where channels differ in number, zeros are appended or the last ones dropped. The certified
    bound is the largest norm over the frequencies, in float64. Cost: two Fourier transforms and a Cholesky factor of order `rank`
    for each of m (n / 2 + 1) frequencies. Source: Lai et al., ICML 2025.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        padding_mode: str = "circular",
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding_mode, activation)
        order = max(out_channels, self.folded_channels)
        self.rank = _rank("BROConv", rank, order)
        self.weight = nn.Parameter(torch.randn(order, self.rank, self.taps, self.taps) / math.sqrt(order * self.taps**2))

    def matrices(self, torus: tuple[int, int]) -> Complex[Tensor, "half outputs folded"]:
        (weight,) = self.exact(self.weight)
        return reflector(spectrum(weight, torus))[:, : self.out_channels, : self.folded_channels]


rule.register(BRO, dense_bound)
rule.register(BROConv, fourier_bound)
