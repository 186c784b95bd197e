"""Branches on the same input, concatenated along the channels."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, Uncertifiable, branches, gathered, rule
from robustbench_rkhs.nodes.node import UserError


class Concatenate(nn.Module):
    r"""The channels (or features) of several branches of the same image.

    .. math:: y = (b_1(x), \dots, b_n(x)), \qquad \mathrm{Lip}(y) \le \sqrt{\textstyle\sum_i \mathrm{Lip}(b_i)^2}

    as squared distances add up; two identities attain it, sqrt 2. Cost: that of its branches.
    Raises UserError without branches. Source: Huang et al. (DenseNet), CVPR 2017, for the layer.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        for number, part in enumerate(parts):
            self.add_module(str(number), part)
        if not self._modules:
            raise UserError("Concatenate: expected at least one branch, found none")

    def forward(self, x: Float[Tensor, "batch *inputs"]) -> Float[Tensor, "batch *outputs"]:
        return torch.cat([branch(x) for branch in branches(self)], dim=1)


@branches.register
def _(module: Concatenate) -> list[nn.Module]:
    return [part for part in module._modules.values() if part is not None]  # the same module twice counts as two branches


@gathered.register
def _(module: Concatenate, parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1)


@rule.register
def _(module: Concatenate, shape: tuple[int, ...]) -> Bound:
    raise Uncertifiable("its bound is computed from its branches, by `bounds`")
