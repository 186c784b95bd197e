"""Logits in float64, with a bound on their rounding errors."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from robustbench_rkhs.bounds import Step
from robustbench_rkhs.lipschitz import gathered
from robustbench_rkhs.lipschitz.bounds import TINY, UNIT
from robustbench_rkhs.lipschitz.euclidean import lengths
from robustbench_rkhs.lipschitz.rounding import constants, relative_rounding
from robustbench_rkhs.runtime.clock import ask


def logits_and_error(
    chain: list[Step], x: Float64[Tensor, "batch *image"], before: Float64[Tensor, " batch"] | None = None
) -> tuple[Float64[Tensor, "batch *outputs"], Float64[Tensor, " batch"]]:
    r"""The chain's outputs and, per image, a bound on their l2 distance to the outputs in real arithmetic.

    .. math:: e_k = L_k e_{k-1} + \gamma_k (L_k \lVert h_{k-1} \rVert_2 + o_k)

    A layer of bound L_k amplifies the error before it at most L_k-fold, and adds at most gamma_k (`relative_rounding`) times
    the size of its output, of which o_k comes from its constants. Branches that are added are followed one by one; the
    addition rounds by at most one unit. `before`: the error of the images. Cost: a forward pass.
    """
    h, error = x, torch.zeros(len(x), dtype=torch.float64) if before is None else before
    for step in chain:
        ask()
        if step.branches:
            parts = [logits_and_error(branch, h, error) for branch in step.branches]
            size = torch.stack([lengths(part.flatten(1)) for part, _ in parts]).sum(0)
            h = gathered(step.module, [part for part, _ in parts])
            error = torch.stack([gathered for _, gathered in parts]).sum(0) + 4 * UNIT * len(parts) * size + TINY
            continue
        inputs, outputs = math.prod(step.inputs), math.prod(step.bound.shape)
        size = step.bound.value * lengths(h.flatten(1)) + constants(step.module, step.inputs)
        local = relative_rounding(step.module, inputs, outputs) * size
        h = step.module(h)
        error = step.bound.value * error + local + TINY
    return h, error
