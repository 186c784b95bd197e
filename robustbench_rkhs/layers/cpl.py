"""Convex potential layers: a gradient step on a convex function, of a length that depends on the weight's proven norm."""

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from robustbench_rkhs.layers.reflection import Reflection, ReflectionConv, certified

SQUARINGS = 7
"""Squarings of the Gram matrix: the bound of ||W||^2 is at most n^(1/256) times too large, 2 % for n = 256."""
DENSITY = 8
"""Frequencies per axis for each pair of neighbouring taps: the bound of ||W||^2 is at most 1 / cos(pi / 16)^4 = 8 % too large."""


@certified
class CPL(Reflection):
    r"""A dense residual layer with ReLU inside, 1-Lipschitz for every weight.

    .. math:: y = x - \frac{2}{\lambda} W\, \mathrm{relu}(W^\top x + b), \qquad \lambda \ge \lVert W \rVert_2^2

    lambda is proven at every step (`gram_bound`, no power iteration) and differentiated, so that training and evaluation use
    the same function. The certified bound is max(1, 2 s - 1), s the norm^2 of W / sqrt(lambda) as evaluated in float64
    (layers/reflection.py). Where sqrt(lambda) < 1e-30 the layer is the identity. Cost: nine products of order
    min(inner, features)^3 beside the two of the layer. Source: Meunier et al., ICML 2022; Delattre et al., ICML 2023.
    """

    def squares(self, weight: Float[Tensor, "inner features"]) -> Float[Tensor, " inner"]:
        return gram_bound(weight[None]).expand(len(weight))


@certified
class CPLConv(ReflectionConv):
    r"""`CPL` with convolutions of stride one: W^T convolves `channels` into `inner` ones, W is its exact transpose.

    lambda bounds the convolution on the unbounded grid, and so at every image size, under either padding: the largest
    Gram bound over a grid of N = 8 (k - 1) frequencies per axis, divided by cos(pi (k - 1) / 2N) squared per axis (see `between`).
    Any kernel; sizes stay. A circular kernel that would wrap more than once raises in the forward pass.
    Source: as `CPL`; Ehlich & Zeller 1964 for the polynomial between the points.
    """

    def squares(self, weight: Float[Tensor, "inner channel kernel kernel"]) -> Float[Tensor, " inner"]:
        return (gram_bound(frequencies(weight)) * between(weight.shape[-1])).expand(len(weight))


def gram_bound(matrices: Inexact[Tensor, "batch rows columns"]) -> Float[Tensor, ""]:
    r"""Differentiable upper bound of the largest squared norm of a batch: Gram iteration, normalised in each step.

    .. math:: \lVert G \rVert_2 \le \lVert G^{2^t} \rVert_F^{1 / 2^t}, \qquad G = A^* A

    as G is Hermitian. Each square is divided by its Frobenius norm, whose power is accumulated: nothing overflows. Zeros give 0.
    """
    peak = matrices.detach().abs().amax()
    if not peak.is_meta and peak == 0:
        return matrices.abs().sum()
    rows, columns = matrices.shape[-2:]
    scaled = matrices / peak
    power = scaled @ scaled.mH if rows <= columns else scaled.mH @ scaled
    bound, exponent = torch.ones_like(power[:, 0, 0].real), 1.0
    for squaring in range(SQUARINGS + 1):
        if squaring:
            power, exponent = power @ power, exponent / 2
        length = _length(power)
        bound, power = bound * length**exponent, power / length[:, None, None]
    return bound.amax() * peak.square()


def _length(matrices: Inexact[Tensor, "batch order order"]) -> Float[Tensor, " batch"]:
    """Frobenius norms; the smallest normal number for zeros, which can then be divided by."""
    result: Tensor = matrices.flatten(1).norm(dim=1).clamp_min(torch.finfo(matrices.dtype).tiny)
    return result


def frequencies(weight: Float[Tensor, "inner channel kernel kernel"]) -> Inexact[Tensor, "frequency inner channel"]:
    """The convolution's matrices on a grid of N = 8 (k - 1) frequencies per axis: half of them, as the others are conjugates."""
    inner, channels, kernel, _ = weight.shape
    points = max(1, DENSITY * (kernel - 1))
    spectrum = torch.fft.rfft2(weight, s=(points, points))
    result: Tensor = spectrum.permute(2, 3, 0, 1).reshape(-1, inner, channels)
    return result


def between(kernel: int) -> float:
    r"""The factor by which the squared norm between the grid's frequencies can exceed that on them.

    Along an axis, Re(u* W(theta) v) times a phase is a trigonometric polynomial of degree d = (k - 1) / 2 (in theta / 2
    where that is no integer). From its largest value M it falls no faster than M cos(d t) (M. Riesz), and a point of the
    grid lies within t = pi / N. So a norm grows by at most 1 / cos(pi d / N) per axis.
    """
    points = max(1, DENSITY * (kernel - 1))
    return math.cos(math.pi * (kernel - 1) / (2 * points)) ** -4
