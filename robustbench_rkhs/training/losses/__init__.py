"""Losses: loss(model, x, y) -> scalar.

In your own training loop, call a loss on the model, not on its logits:

>>> import torch
>>> from robustbench_rkhs.training.losses import Trades
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
>>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
>>> loss = Trades(eps=8 / 255, steps=2)(model, x, y)
>>> loss.backward()
>>> model[1].weight.grad.shape
torch.Size([10, 64])

Your own loss is a subclass of `LossNode` with a `__call__`; its fields are its flags: `--loss.name mylosses:Focal --loss.gamma 2`.
"""

from typing import Annotated

from robustbench_rkhs.nodes.one_of import OneOf
from robustbench_rkhs.training.losses.base import LossNode
from robustbench_rkhs.training.losses.cc_ibp import CCIBP
from robustbench_rkhs.training.losses.cross_entropy import CrossEntropy
from robustbench_rkhs.training.losses.crown_ibp import CrownIBP
from robustbench_rkhs.training.losses.gloro import Gloro
from robustbench_rkhs.training.losses.hinge import Hinge
from robustbench_rkhs.training.losses.ibp import IBP
from robustbench_rkhs.training.losses.mma import MMA
from robustbench_rkhs.training.losses.mtl_ibp import MtlIbp
from robustbench_rkhs.training.losses.multi_margin import MultiMargin
from robustbench_rkhs.training.losses.radius import Radius
from robustbench_rkhs.training.losses.sabr import SABR
from robustbench_rkhs.training.losses.squared_error import SquaredError
from robustbench_rkhs.training.losses.trades import Trades

Loss = Annotated[
    CrossEntropy
    | SquaredError
    | Hinge
    | MultiMargin
    | Trades
    | MMA
    | IBP
    | CrownIBP
    | MtlIbp
    | CCIBP
    | SABR
    | Gloro
    | Radius
    | LossNode,
    OneOf(LossNode, "losses"),
]
"""Any loss: ours by `name`, an instance of LossNode, or your own as package.module:Name."""

__all__ = [
    "CCIBP",
    "IBP",
    "MMA",
    "SABR",
    "CrossEntropy",
    "CrownIBP",
    "Gloro",
    "Hinge",
    "Loss",
    "LossNode",
    "MtlIbp",
    "MultiMargin",
    "Radius",
    "SquaredError",
    "Trades",
]
