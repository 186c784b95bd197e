"""Residual layers that are 1-Lipschitz by diagonal dominance (SDP-based Lipschitz layers, corrected)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.layers.borders import Padding, correlation
from robustbench_rkhs.layers.reflection import Reflection, ReflectionConv, certified

LARGEST = 50.0
"""log q is clamped to +-50: ratios of two stay within e^100."""


@certified
class SLL(Reflection):
    r"""A dense residual layer with ReLU inside, 1-Lipschitz for every weight and every q > 0.

    .. math:: y = x - 2 W T^{-1} \mathrm{relu}(W^\top x + b), \qquad T_{ii} = \sum_j |W^\top W|_{ij}\, q_j / q_i

    2 |x_i x_j| <= x_i^2 q_j / q_i + x_j^2 q_i / q_j gives W^T W <= T, hence the bound (layers/reflection.py). The same
    q = exp(log_q) divides and multiplies: a division by |q| + 1e-6, as first published, has slope 201 at q = 1e-8.
    The certified bound is max(1, 2 s - 1), s the norm^2 of W T^(-1/2) as evaluated in float64. Columns shorter than 1e-30 count
    as zero. Units: those of x. Cost: a product of order inner^2 features beside the two of the layer.
    Source: Araujo et al., ICLR 2023, with their correction of October 2023.
    """

    def __init__(self, features: int, inner: int) -> None:
        super().__init__(features, inner)
        self.log_q = nn.Parameter(torch.zeros(inner))

    def squares(self, weight: Float[Tensor, "inner features"]) -> Float[Tensor, " inner"]:
        return _dominant((weight @ weight.T).abs(), self.log_q)


@certified
class SLLConv(ReflectionConv):
    r"""`SLL` with convolutions of stride one: W^T convolves `channels` into `inner` ones, W is its exact transpose.

    .. math:: T_{ii} = \sum_{j, d} |(W \star W)_{ij}(d)|\, q_j / q_i

    over inner channels and shifts; the same at every pixel. Any kernel, either padding; sizes stay. A circular kernel that
    would wrap more than once raises in the forward pass. Source: as `SLL`.
    """

    def __init__(self, channels: int, inner: int, kernel: int = 3, padding_mode: Padding = "circular") -> None:
        super().__init__(channels, inner, kernel, padding_mode)
        self.log_q = nn.Parameter(torch.zeros(inner))

    def squares(self, weight: Float[Tensor, "inner channel kernel kernel"]) -> Float[Tensor, " inner"]:
        return _dominant(correlation(weight), self.log_q)


def _dominant(overlaps: Float[Tensor, "inner inner"], log_q: Float[Tensor, " inner"]) -> Float[Tensor, " inner"]:
    """sum_j overlap_ij q_j / q_i."""
    q = log_q.to(overlaps.dtype).clamp(-LARGEST, LARGEST).exp()
    return (overlaps @ q) / q
