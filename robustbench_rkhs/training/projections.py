"""Projections: the weights are projected onto a set after each optimiser step."""

import math
from collections import defaultdict
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from robustbench_rkhs.lipschitz.reshaped import as_matrix, weighted
from robustbench_rkhs.nodes.node import Node, Real, UserError

SLACK = 2e-6
"""A norm counts as too large above tau (1 + SLACK), the resolution of float32; projecting twice changes nothing."""


class SpectralProjection(Node):
    r"""Clip the singular values of every linear and convolutional weight at a tau that falls with the epoch.

    .. math:: W \leftarrow U \min(\Sigma, \tau_e) V^\top, \qquad \tau_e = \tau (1 + 4 e^{-e / \kappa})

    `reshaped` clips the C_out x (C_in k k) matrix, as published; a 3x3 convolution's operator norm may still be up to three
    times as large. `operator` bounds the operator norm at every image size: dense weights are clipped, convolutions are
    clipped frequency by frequency, cut to their support and scaled by a proven bound. Biases are never touched.
    A matrix that was below tau is tested again only once it has changed enough to reach it: its last bound plus
    the Frobenius norm of the change since is still a bound. The others get a Cholesky test of tau^2 I - W W^T, which decides
    exactly which exceed tau; only those are decomposed, in batches of one size.
    Cost: one subtraction per layer far below tau; else one Gram product, and one symmetric eigendecomposition of the smaller
    side where tau is exceeded.
    Source: Bietti et al., ICML 2019; the schedule of tau, their published code's.
    """

    name: Literal["spectral"] = "spectral"
    tau: Real = Field(0.8, gt=0)
    """Final limit on the largest singular value."""
    kappa: Real | None = Field(None, gt=0)
    """Epochs in which the surplus 4 tau falls by a factor e; default: constant tau."""
    of_epochs: int | None = Field(None, ge=1)
    """Training length, in epochs, that kappa is meant for: a shorter training shrinks kappa in proportion to reach tau."""
    operator: Literal["reshaped", "operator"] = "reshaped"
    """The norm: of the reshaped kernel (as published), or of the operator."""

    def in_schedule(self, epochs: int) -> "SpectralProjection":
        """The same projection with kappa scaled to a training of `epochs`."""
        if self.kappa is None or self.of_epochs is None or epochs >= self.of_epochs:
            return self
        return self.model_copy(update={"kappa": self.kappa * epochs / self.of_epochs, "of_epochs": None})

    def tau_at(self, epoch: float) -> float:
        """The current tau; `epoch` may be fractional."""
        return self.tau if self.kappa is None else self.tau * (1 + 4 * math.exp(-epoch / self.kappa))

    @torch.no_grad()
    def __call__(self, model: nn.Module, epoch: float) -> None:
        tau = self.tau_at(epoch)
        matrices: list[Tensor] = []
        owners: list[Tensor] = []
        for module in weighted(model):
            if self.operator == "operator" and not isinstance(module, nn.Linear):
                clip_convolution(module.weight, module.groups, tau)  # type: ignore[arg-type]
            else:
                weight: Tensor = module.weight  # type: ignore[assignment]
                if not known_within(weight, tau):
                    matrices.append(as_matrix(weight.data))
                    owners.append(weight)
        for owner, bound in zip(owners, clip(matrices, tau), strict=True):
            remember(owner, bound, tau)


_KNOWN = WeakIdKeyDictionary()
"""Weight -> (its copy, a bound of its largest singular value then). A cache of proofs: results do not depend on it."""


def known_within(weight: Tensor, tau: float) -> bool:
    """True if the last bound plus the Frobenius norm of the change since still proves every singular value <= tau."""
    if weight not in _KNOWN:
        return False
    then, bound = _KNOWN[weight]
    if bound >= tau or then.shape != weight.shape or then.device != weight.device:
        return False
    return bool(bound + 1.0001 * torch.linalg.vector_norm(weight.detach() - then) <= tau)  # False at NaN


def remember(weight: Tensor, bound: float, tau: float) -> None:
    """Store a bound that leaves room below tau; delete any other."""
    if bound < tau:
        _KNOWN[weight] = (weight.detach().clone(), bound)
    else:
        _KNOWN.pop(weight, None)


def clip(matrices: list[Float[Tensor, "_ _"]], tau: float) -> list[float]:
    """Clip the singular values of each matrix at tau, in place; return a bound on each largest one.

    Raises UserError at NaN or infinity.
    With A the wide side, A A^T = U S^2 U^T gives A - U_> (1 - tau / S_>) U_>^T A, over the singular values above tau only.
    """
    bounds = []
    waiting: dict[tuple[int, torch.dtype, torch.device], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for matrix in matrices:
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        gram = gram_matrix(wide)
        trace = gram.diagonal().sum().item()
        if not math.isfinite(trace):
            raise UserError("spectral projection: a weight holds NaN or infinity")
        bounds.append(tau)
        if trace <= tau**2 or _within(gram, tau):
            bounds[-1] = _room(gram, tau)
            continue
        if trace > 64 * tau**2 * len(gram):  # float32 would lose singular values near tau beside so large a norm
            gram = gram_matrix(wide.double())
        waiting[(len(gram), gram.dtype, gram.device)].append((wide, gram))
    for group in waiting.values():
        values, vectors = torch.linalg.eigh(torch.stack([gram for _, gram in group]))
        for (wide, _), value, vector in zip(group, values, vectors, strict=True):
            above = value > (tau * (1 + SLACK)) ** 2
            basis = vector[:, above]
            surplus = 1 - tau / value[above].sqrt()
            work = wide.to(basis.dtype)  # subtracted in that arithmetic too: the difference may be far smaller
            wide.copy_(work - (basis * surplus) @ (basis.T @ work))
    return bounds


def gram_matrix(wide: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows rows"]:
    """W W^T; large ones on the CPU by blocks above the diagonal, mirrored, which saves a third of the product."""
    rows = len(wide)
    if wide.device.type != "cpu" or rows < 256:
        return wide @ wide.T
    gram = wide.new_empty(rows, rows)
    for start in range(0, rows, rows // 4):
        stop = min(start + rows // 4, rows)
        gram[start:stop, start:] = wide[start:stop] @ wide[start:].T
        gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram


def _within(gram: Tensor, tau: float) -> bool:
    """True where tau^2 (1 + 2 SLACK) I - W W^T has a Cholesky factor: then no singular value of W exceeds tau (1 + SLACK)."""
    test = -gram
    test.diagonal().add_((tau * (1 + SLACK)) ** 2)
    return bool(torch.linalg.cholesky_ex(test).info == 0)


def _room(gram: Tensor, tau: float) -> float:
    """The smallest of a few levels below tau that bounds the largest singular value; tau if none does."""
    bound = tau
    for level in (0.95, 0.8, 0.6, 0.4, 0.2, 0.1):
        if not _within(gram, level * tau):
            break
        bound = level * tau * 1.0001  # float32's rounding in the factor
    return bound


def operator_bound(weight: Float[Tensor, "out in height width"], groups: int = 1, points: int = 32) -> float:
    r"""Upper bound of a 2-D convolution's operator norm at every image size, stride, dilation, zero or circular padding.

    .. math:: \sup_\theta \lVert F(\theta) \rVert_2 \le \max_{\text{grid}} \lVert F \rVert_2
              \prod_d \cos\big(\pi (k_d - 1) / 2m\big)^{-1}, \qquad F(\theta) = \sum_j W_j e^{-i \langle j, \theta \rangle}

    u^* F v is a trigonometric polynomial of degree (k - 1) / 2 once centred, and m equispaced points give its maximum up to that
    factor (Ehlich & Zeller, 1964). Sizes, strides and paddings only compress the operator; dilation only rescales theta.
    Cost: m (m / 2 + 1) singular value decompositions per group.
    """
    side = max(points, 4 * max(weight.shape[2:]))
    factor = math.prod(math.cos(math.pi * (kernel - 1) / (2 * side)) for kernel in weight.shape[2:])
    largest = 0.0
    for part in weight.detach().double().chunk(groups):
        spectrum = torch.fft.rfft2(part, s=(side, side)).permute(2, 3, 0, 1)
        largest = max(largest, torch.linalg.matrix_norm(spectrum, ord=2).max().item())
    return largest / factor * (1 + 1e-9)


def clip_convolution(weight: Tensor, groups: int, tau: float) -> None:
    """Project into {operator_bound <= tau}, in place: clip on a torus, crop to the kernel's support, scale the remaining excess."""
    if weight.dim() != 4:
        raise UserError(f"operator projection covers 2-D convolutions, found a weight of shape {tuple(weight.shape)}")
    if operator_bound(weight, groups) <= tau * (1 + SLACK):
        return
    height, width = weight.shape[2:]
    side = max(16, 2 * max(height, width))
    for part in weight.data.chunk(groups):
        spectrum = torch.fft.rfft2(part.double(), s=(side, side)).permute(2, 3, 0, 1)
        left, values, right = torch.linalg.svd(spectrum, full_matrices=False)
        clipped = (left * values.clamp_max(tau)[..., None, :].to(left.dtype)) @ right
        kernel = torch.fft.irfft2(clipped.permute(2, 3, 0, 1), s=(side, side))
        part.copy_(kernel[..., :height, :width])
    bound = operator_bound(weight, groups)
    if bound > tau:
        weight.data.mul_(tau / bound)
