"""Squared error, for regression and classification."""

from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.training.losses.base import LossNode


class SquaredError(LossNode):
    r"""Squared error, mean over the batch and the outputs.

    .. math:: (f_k(x) - y_k)^2

    where y is the label of a regression, or the one-hot vector of a class.
    Cost: one forward pass.
    """

    regression: ClassVar[bool] = True

    name: Literal["squared_error"] = "squared_error"

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        outputs = model(x).float()
        wanted = y if y.is_floating_point() else functional.one_hot(y, outputs.shape[1])
        return functional.mse_loss(outputs, wanted.to(outputs).view_as(outputs))
