"""Scaling layers, which make a 1-Lipschitz network gamma-Lipschitz."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, fan, rule
from robustbench_rkhs.lipschitz.bounds import upwards, weights
from robustbench_rkhs.nodes.node import UserError


class Scale(nn.Module):
    """y = value x: sqrt(gamma) before the first and before the last layer makes a 1-Lipschitz network gamma-Lipschitz.

    Raises UserError where the value is not finite.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        if not math.isfinite(value):
            raise UserError(f"Scale: expected a finite number, found {value}")
        self.value = float(value)

    def forward(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return x * self.value

    def extra_repr(self) -> str:
        return f"value={self.value!r}"


class LearnableScale(nn.Module):
    r"""y = value x with a learnt value, stored as its logarithm so that it stays positive.

    sqrt(gamma) at two places of a 1-Lipschitz network gives a learnt gamma. The bound is that of the stored value.
    Raises UserError where the first value is not a positive number.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"LearnableScale: expected a positive number, found {value}")
        self.logarithm = nn.Parameter(torch.tensor(math.log(value)))

    def forward(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return x * self.logarithm.exp().to(x.dtype)


@rule.register
def _(module: Scale, shape: tuple[int, ...]) -> Bound:
    value = abs(float(module.value))
    if not math.isfinite(value):
        raise Uncertifiable(f"expected a finite scale, found {module.value}")
    return Bound(value, shape)


@rule.register
def _(module: LearnableScale, shape: tuple[int, ...]) -> Bound:
    value = weights(module.logarithm, "logarithm").exp().item()
    if not math.isfinite(value):
        raise Uncertifiable(f"expected a finite scale, found e^{module.logarithm.item():g}")
    return Bound(upwards(value), shape)


for _kind in (Scale, LearnableScale):
    affine.register(_kind, lambda module: True)
    fan.register(_kind, lambda module, inputs, outputs: (1, 1))
