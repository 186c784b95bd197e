"""The base class of losses: a scalar that training minimises."""

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustbench_rkhs.nodes.ramps import Scheduled


class LossNode(Scheduled):
    """Base class of losses. `__call__(model, x, y, keys)`; `keys`: one integer key per image that seeds its random numbers."""

    attacks: ClassVar[bool] = False
    """True: it perturbs the images itself and needs clean ones (a recipe with it has no `attack`)."""
    regression: ClassVar[bool] = False
    """True: it also takes labels that are numbers, float (batch, outputs)."""

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Tensor,
        keys: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        raise TypeError(f"{type(self).__name__} is not a loss by itself")
