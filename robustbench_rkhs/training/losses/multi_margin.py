"""Multi-margin loss: every other class must lie a given margin below the label."""

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.training.losses.base import LossNode


class MultiMargin(LossNode):
    r"""Hinge loss of the label's logit against every other class, mean over the batch.

    .. math:: \frac1K \sum_{j \ne y} \max\big( 0,\; m - f_y(x) + f_j(x) \big)^p

    over K classes. Unlike `hinge`, it counts every class within the margin, not only the nearest.
    Units: logits to the power p. Cost: one forward pass. Source: Weston & Watkins, ESANN 1999, as torch's MultiMarginLoss;
    with m = 0.5 and p = 1 the loss of Wang & Manchester, ICML 2023, on CIFAR-10.
    """

    name: Literal["multi_margin"] = "multi_margin"
    margin: Real = Field(0.5, ge=0)
    """m: the required margin, in logits."""
    power: Literal[1, 2] = 1
    """p: 2 gives more weight to the classes that miss the margin most."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        return functional.multi_margin_loss(model(x).float(), y, p=self.power, margin=self.margin)
