"""Bounds on the difference between the float32 network on this CPU and the network in real arithmetic, over a ball."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.bounds import Step
from robustbench_rkhs.layers import Normalize, Residual, Scale
from robustbench_rkhs.lipschitz import Uncertifiable, fan
from robustbench_rkhs.lipschitz.bounds import UNIT
from robustbench_rkhs.lipschitz.guard import named
from robustbench_rkhs.lipschitz.rounding import constants, relative_rounding
from robustbench_rkhs.runtime.clock import ask

SINGLE = 2.0**-24
"""Unit roundoff of float32."""
LEAST = 2.0**-126
"""Smallest normal float32: the most that underflow, gradual or flushed, can lose in one operation."""
LARGEST = 1e37
"""Sums of absolute values above this may overflow float32."""
PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    Normalize,
    Scale,
)
"""Layers whose float32 forward pass is sums of products and kinks, in any order; others compute their weights in float32."""


def float32_error(chain: list[Step], x: Float64[Tensor, "batch *image"]) -> tuple[Float64[Tensor, " batch"], float]:
    r"""(e, s) so that the float32 logits of any float32 image x' with ||x' - x||_2 <= r err by at most e + s r in l2.

    .. math:: E_k \le L_k E_{k-1} + \gamma_k \left( L_k (\lVert h_{k-1}(x) \rVert + P_{k-1} r + E_{k-1}) + o_k \right)
              + \tau_k, \qquad P_k = L_k P_{k-1}

    with gamma_k the relative rounding of a layer at the unit roundoff 2^-24 (products summed in any order, with or without fused
    multiply-add, never by Winograd or Fourier transforms: NNPACK is off in every
    evaluation here), o_k its constants, and tau_k the
    loss by underflow, 2^-126 per operation. Each E_k is affine in r. e is infinite where a sum could overflow.
    Raises Uncertifiable, naming the layer, for layers that do more than such sums in float32. Cost: one float64 forward pass.
    """
    e, s = _through(chain, x, torch.zeros(len(x), dtype=torch.float64), 0.0, 1.0)[1:3]
    return e, s


def _through(chain: list[Step], h: Tensor, e: Tensor, s: float, prefix: float) -> tuple[Tensor, Tensor, float, float]:
    """Outputs, error at the image, error per unit of radius, and the Lipschitz bound of all layers so far."""
    for step in chain:
        ask()
        if isinstance(step.module, Residual):
            parts = [_through(branch, h, e, s, prefix) for branch in step.branches]
            size = torch.stack([part.flatten(1).norm(dim=1) + error for part, error, _, _ in parts]).sum(0)
            h = torch.stack([part for part, *_ in parts]).sum(0)
            e = torch.stack([error for _, error, _, _ in parts]).sum(0) + 2 * len(parts) * SINGLE * size
            reach = math.fsum(bound + slope for _, _, slope, bound in parts)
            s = math.fsum(slope for _, _, slope, _ in parts) + 2 * len(parts) * SINGLE * reach
            prefix = step.bound.value * prefix
            continue
        if not isinstance(step.module, PLAIN) or step.branches:
            raise Uncertifiable(f"{named(step.path, step.module)}: its float32 rounding is not bounded here")
        inputs, outputs = math.prod(step.inputs), math.prod(step.bound.shape)
        rows, columns = fan(step.module, inputs, outputs)
        local = relative_rounding(step.module, inputs, outputs) * (SINGLE / UNIT) * (1 + 1e-3)
        if local > 0.01:
            raise Uncertifiable(f"{named(step.path, step.module)}: sums of {max(rows, columns)} products are too long for float32")
        lost = 4 * (rows + 16) * math.sqrt(outputs) * LEAST
        norm = h.flatten(1).norm(dim=1) * (1 + 1e-9)
        size = step.bound.value * (norm + e) + constants(step.module, step.inputs)
        e = step.bound.value * e + local * size + lost
        e = torch.where(size * (rows * columns) ** 0.25 > LARGEST, torch.inf, e)
        s = step.bound.value * s + local * step.bound.value * (prefix + s)
        prefix = step.bound.value * prefix
        h = step.module(h)
    return h, e * (1 + 1e-9), s * (1 + 1e-9), prefix * (1 + 1e-9)
