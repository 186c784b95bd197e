"""Cross-entropy, with temperature and offset."""

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.training.losses.base import LossNode


class CrossEntropy(LossNode):
    r"""Cross-entropy with temperature and offset, mean over the batch.

    .. math:: t \cdot CE\big( (f(x) - c\, e_y) / t,\; y \big)

    Temperature t, offset c; plain cross-entropy at t = 1, c = 0, and no smoothing. An offset requires a margin, in logits, and so
    trades clean for certified accuracy in a Lipschitz network.
    Cost: one forward pass. Source: the offset form, Prach & Lampert, ECCV 2022.
    """

    name: Literal["cross_entropy"] = "cross_entropy"
    temperature: Real = Field(1.0, gt=0)
    """t: small values give more weight to images near the margin."""
    offset: Real = Field(0.0, ge=0)
    """c: subtracted from the label's logit, in logits."""
    smoothing: Real = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes (label smoothing)."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        logits = model(x)
        shifted = logits - self.offset * functional.one_hot(y, logits.shape[1]).to(logits.dtype)
        return self.temperature * functional.cross_entropy(shifted.float() / self.temperature, y, label_smoothing=self.smoothing)
