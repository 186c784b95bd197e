"""Hinge loss: the label's logit must exceed every other by a given margin."""

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.training.losses.base import LossNode


class Hinge(LossNode):
    r"""Hinge loss on the margin, mean over the batch.

    .. math:: \max\big( 0,\; m - (f_y(x) - \max_{j \ne y} f_j(x)) \big)

    On a network of Lipschitz constant L, an image with zero loss has the certified l2 radius m / (sqrt2 L). Images that already
    have the margin contribute no gradient.
    Units: logits. Cost: one forward pass. Source: Crammer & Singer, JMLR 2001.
    """

    name: Literal["hinge"] = "hinge"
    margin: Real = Field(1.0, ge=0)
    """m: the required margin, in logits."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        return (self.margin - margin(model(x).float(), y)).clamp_min(0).mean()
