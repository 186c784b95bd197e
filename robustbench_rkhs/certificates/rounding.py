"""Logits in float64, with a bound of how far rounding can have moved them."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from robustbench_rkhs.lipschitz import Step
from robustbench_rkhs.lipschitz.bounds import TINY
from robustbench_rkhs.lipschitz.rounding import constants, relative_rounding


def logits_and_error(
    chain: list[Step], x: Float64[Tensor, "batch *image"]
) -> tuple[Float64[Tensor, "batch *outputs"], Float64[Tensor, " batch"]]:
    r"""The chain's outputs and, for each image, a bound of their l2 distance to the outputs in real arithmetic.

    .. math:: e_k = L_k e_{k-1} + \gamma_k (L_k \lVert h_{k-1} \rVert_2 + o_k)

    What a layer of bound L_k has gathered it passes on at most L_k-fold; what it adds is at most gamma_k
    (`relative_rounding`) times the size of what it computes, o_k of which comes from its constants. Cost: a forward
    pass.
    """
    h, error = x, torch.zeros(len(x), dtype=torch.float64)
    for step in chain:
        inputs, outputs = math.prod(step.inputs), math.prod(step.bound.shape)
        size = step.bound.value * h.flatten(1).norm(dim=1) + constants(step.module, step.inputs)
        local = relative_rounding(step.module, inputs, outputs) * size
        h = step.module(h)
        error = step.bound.value * error + local + TINY
    return h, error
