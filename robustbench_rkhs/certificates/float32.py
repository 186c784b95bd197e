"""Bounds on the difference between the float32 network on this CPU and the network in real arithmetic, over a ball."""

import copy
import math

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.bounds import Step, margins_of, opened
from robustbench_rkhs.layers import Normalize, Residual, Scale
from robustbench_rkhs.lipschitz import Uncertifiable, fan
from robustbench_rkhs.lipschitz.bounds import TINY, UNIT
from robustbench_rkhs.lipschitz.guard import named
from robustbench_rkhs.lipschitz.rounding import constants, relative_rounding
from robustbench_rkhs.runtime.clock import ask

SINGLE = 2.0**-24
"""Unit roundoff of float32."""
LEAST = 2.0**-126
"""Smallest normal float32: the most that underflow, gradual or flushed, can lose in one operation."""
BATCH = 256
"""Images per forward pass."""
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


CHOOSING = (nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d)
"""Layers that pass numbers on, or 0, without rounding any."""
SCALING = (Normalize, Scale, nn.LeakyReLU)
"""Layers with at most two roundings per number, each relative to their output (a factor that is cast to float32 is one)."""
FLOAT32 = "float32 on CPU"
"""The arithmetic of claims that cover the rounding of the float32 network, as tables say it."""


def in_float32(x: Tensor) -> bool:
    """Whether these images are evaluated in the arithmetic that the bounds here are for."""
    return x.dtype == torch.float32 and x.device.type == "cpu"


def evaluated_error(
    model: nn.Module, chain: list[Step], x: Tensor
) -> tuple[Float64[Tensor, " batch"], float, Float64[Tensor, " batch"]]:
    """`float32_error` at these images, for the model whose chain this is.

    Raises Uncertifiable for a network of another type, or whose layers do more than sums of products in float32.
    """
    if margins_of(opened(model, tuple(x.shape[1:]))) is not model:
        kind = type(model).__name__
        raise Uncertifiable(f"no float32 claim about {kind}: it is proved as a chain of merged layers, not as it runs")
    kinds = {tensor.dtype for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point()}
    if kinds - {torch.float32}:
        raise Uncertifiable(f"no float32 claim about a network with weights in {', '.join(sorted(map(str, kinds)))}")
    found = [float32_error(chain, part) for part in x.to("cpu", torch.float64).split(BATCH)]
    nothing = [x.new_zeros(0, device="cpu").double()]
    error, far = torch.cat([one for one, _, _ in found] or nothing), torch.cat([one for _, _, one in found] or nothing)
    return error, max((slope for _, slope, _ in found), default=0.0), far


def float32_error(
    chain: list[Step], x: Float64[Tensor, "batch *image"]
) -> tuple[Float64[Tensor, " batch"], float, Float64[Tensor, " batch"]]:
    r"""(e, s, f) so that the float32 logits of any float32 image x' with ||x' - x||_2 <= r <= f err by at most e + s r in l2.

    .. math:: E_k \le L_k E_{k-1} + \gamma_k \left( \lVert\, |W_k| |h_{k-1}(x)| + |b_k| \,\rVert
              + A_k (P_{k-1} r + E_{k-1}) \right) + \tau_k, \qquad P_k = L_k P_{k-1}, \quad A_k \ge \lVert\, |W_k| \,\rVert_2

    with gamma_k the rounding of a sum of that many products at the unit roundoff 2^-24 (in any order, with or without fused
    multiply-add, never by Winograd or Fourier transforms: NNPACK is off in every evaluation here), and tau_k the loss by
    underflow, 2^-126 per operation. Layers that only choose (ReLU, max-pooling) round nothing; others err in proportion
    to the bound of their output. Each E_k is affine in r. e is infinite where a sum could
    overflow at x; f is the radius within which none can.
    Raises Uncertifiable, naming the layer, for layers that do more than such sums in float32. Cost: one float64 forward pass.
    """
    far: list[Tensor] = [torch.full((len(x),), torch.inf, dtype=torch.float64)]
    e, s = _through(chain, x, torch.zeros(len(x), dtype=torch.float64), 0.0, 1.0, far)[1:3]
    return e, s, torch.stack(far).amin(0)


def _rounding(step: Step, h: Tensor, local: float, norm: Tensor) -> tuple[Tensor, float]:
    """The layer's own rounding in float32, in l2: at the inputs h, and per unit of l2 by which its input lies elsewhere.

    `local`: its rounding relative to its output, for layers without a closer rule; `norm`: of h.
    """
    module = step.module
    if isinstance(module, CHOOSING):
        return torch.zeros_like(norm), 0.0
    if isinstance(module, SCALING):
        return 2.2 * SINGLE * module(h).flatten(1).norm(dim=1), 2.2 * SINGLE * step.bound.value
    if not isinstance(module, nn.Linear | nn.Conv2d) or getattr(module, "padding_mode", "zeros") != "zeros":
        return local * (step.bound.value * norm + constants(module, step.inputs)), local * step.bound.value
    absolute = copy.deepcopy(module)
    absolute.weight.data.abs_()
    if absolute.bias is not None:
        absolute.bias.data.abs_()
    size = absolute.weight.data
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    row = float(size.flatten(1).sum(1).amax())
    column = float(size.reshape(groups, -1, size.shape[1], math.prod(size.shape[2:])).sum((1, 3)).amax())
    gamma = 1.1 * (math.prod(size.shape[1:]) + 4) * SINGLE
    return gamma * absolute(h.abs()).flatten(1).norm(dim=1), gamma * math.sqrt(row * column)


def _through(
    chain: list[Step], h: Tensor, e: Tensor, s: float, prefix: float, far: list[Tensor]
) -> tuple[Tensor, Tensor, float, float]:
    """Outputs, error at the image, error per unit of radius, and the Lipschitz bound of all layers so far.

    `far`: gets each layer's radius within which its sums do not overflow.
    """
    for step in chain:
        ask()
        if isinstance(step.module, Residual):
            parts = [_through(branch, h, e, s, prefix, far) for branch in step.branches]
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
        fixed, most = constants(step.module, step.inputs), LARGEST / (rows * columns) ** 0.25
        size = step.bound.value * (norm + e) + fixed
        far.append((most - size) / (step.bound.value * (prefix + s) * (1 + 1e-9) + TINY))
        here, growth = _rounding(step, h, local, norm)
        e = step.bound.value * e + here + growth * e + lost
        e = torch.where(size > most, torch.inf, e)
        s = step.bound.value * s + growth * (prefix + s)
        prefix = step.bound.value * prefix
        h = step.module(h)
    return h, e * (1 + 1e-9), s * (1 + 1e-9), prefix * (1 + 1e-9)
