"""The Cayley transform: from any tall matrix to one with orthonormal columns."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Inexact
from torch import Tensor, nn

from robustbench_rkhs.nodes.node import UserError

Start = Literal["identity", "published"]
"""Where layers with a Cayley transform begin: near the identity (an isometry, where sizes differ), or as the published code does,
with uniform free matrices and biases."""
BLOCK = 16
"""Matrices up to this order are inverted by LU; larger ones block by block, in products, which is twice as fast on CPUs."""


def cayley(tall: Inexact[Tensor, "*batch rows columns"]) -> Inexact[Tensor, "*batch rows columns"]:
    r"""A matrix with orthonormal columns from a free one with at least as many rows as columns, real or complex.

    .. math:: W = \begin{pmatrix} U \\ V \end{pmatrix}, \quad Z = U - U^* + V^* V, \quad
              Q = \begin{pmatrix} (I - Z)(I + Z)^{-1} \\ -2 V (I + Z)^{-1} \end{pmatrix}, \quad Q^* Q = I

    The Hermitian part of I + Z is I + V* V: it is always regular, its inverse has norm at most one, and block elimination
    needs no pivots. Cost: an inverse of order `columns` and a product. Source: Trockman & Kolter, ICLR 2021.
    """
    rows, columns = tall.shape[-2:]
    if rows < columns:
        raise UserError(f"cayley: expected at least as many rows as columns, found {rows} x {columns}")
    upper, lower = tall[..., :columns, :], tall[..., columns:, :]
    identity = torch.eye(columns, device=tall.device, dtype=tall.dtype)
    inverse: Tensor = _Inverse.apply(identity + upper - upper.mH + lower.mH @ lower)
    return torch.cat([2 * inverse - identity, -2 * lower @ inverse], dim=-2)  # (I - Z)(I + Z)^-1 = 2 (I + Z)^-1 - I


def scaled_cayley(weight: Inexact[Tensor, "rows columns"], length: Tensor) -> Inexact[Tensor, "rows columns"]:
    """Cayley transform of a real matrix of any shape, scaled to the given length (transposed where it is wide)."""
    free = at_length(weight, length)
    return cayley(free) if free.shape[0] >= free.shape[1] else cayley(free.mT).mT


def at_length(weight: Tensor, length: Tensor) -> Tensor:
    """length W / ||W||_F, scaled so that no square under- or overflows; a weight of zeros counts as zeros."""
    peak = weight.detach().abs().amax()
    scaled = weight / torch.where(peak > 0, peak, 1)
    result: Tensor = scaled * (length.to(weight.dtype) / scaled.norm().clamp_min(1e-6))
    return result


def published_start(shape: tuple[int, ...], fan_in: int) -> tuple[Tensor, Tensor]:
    """A free weight and a bias (one per entry of the second dimension), uniform in +-1 / sqrt(fan_in), as in PyTorch.

    `shape`: (rows, columns, *taps), where rows belong to the input and columns to the output.
    """
    limit = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-limit, limit), torch.empty(shape[1]).uniform_(-limit, limit)


class CayleyOrthogonal(nn.Module):
    """A parametrization: for any free matrix, the weight has orthonormal columns (rows, where it is wide).

    `parametrize.register_parametrization(nn.Linear(...), "weight", CayleyOrthogonal())`. Certificates use the norm of the
    evaluated weight. Cost: as `cayley`, at every access of the weight.
    """

    def forward(self, weight: Inexact[Tensor, "rows columns"]) -> Inexact[Tensor, "rows columns"]:
        return cayley(weight) if weight.shape[0] >= weight.shape[1] else cayley(weight.mT).mT

    def right_inverse(self, weight: Inexact[Tensor, "rows columns"]) -> Inexact[Tensor, "rows columns"]:
        """A value assigned to the weight becomes the free matrix."""
        return weight


class _Inverse(torch.autograd.Function):
    """The inverse of matrices whose Hermitian part is positive definite; its gradient costs two products."""

    @staticmethod
    def forward(context: Any, matrices: Tensor) -> Tensor:
        inverse = _eliminated(matrices) if matrices.device.type == "cpu" else torch.linalg.inv(matrices)
        context.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(context: Any, *slopes: Any) -> Tensor:
        (inverse,) = context.saved_tensors
        result: Tensor = -inverse.mH @ slopes[0] @ inverse.mH
        return result


def _eliminated(matrices: Tensor) -> Tensor:
    """Inverse by halves: that of the first block, then that of its Schur complement, which is positive definite again."""
    order = matrices.shape[-1]
    if order <= BLOCK or matrices.dim() < 3:
        result: Tensor = torch.linalg.inv(matrices)
        return result
    half = order // 2
    a, b = matrices[..., :half, :half], matrices[..., :half, half:]
    c, d = matrices[..., half:, :half], matrices[..., half:, half:]
    first = _eliminated(a.contiguous())
    right, below = first @ b, c @ first
    last = _eliminated(d - c @ right)
    corner = last @ below
    inverse = torch.empty_like(matrices)
    inverse[..., half:, half:], inverse[..., half:, :half] = last, -corner
    inverse[..., :half, half:], inverse[..., :half, :half] = -right @ last, first + right @ corner
    return inverse
