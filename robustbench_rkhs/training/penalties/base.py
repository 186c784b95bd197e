"""The base class of penalties: a scalar added to the loss."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.ramps import Scheduled


class PenaltyNode(Scheduled):
    """Common fields of all penalties. `__call__(model, x, y, keys)`; `keys`: one integer key per image that seeds
    its random numbers.

    A penalty leaves the model as it was: mode, BatchNorm statistics, gradients.
    """

    regression: ClassVar[bool] = False
    """True: it reads no labels, or also takes labels of a regression, float (batch, outputs)."""

    weight: Real = Field(1.0, ge=0)
    """Multiplier of the penalty."""

    def prepare(self, model: nn.Module, split: Split, seed: int) -> "PenaltyNode":
        """Called once before the training: returns the penalty, prepared for the model and the training images."""
        return self

    def state(self) -> dict[str, Tensor]:
        """Tensors that it keeps between steps, so that a resumed training is the same; none for most penalties."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore a stored `state`."""

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Tensor,
        keys: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        raise TypeError(f"{type(self).__name__} is not a penalty by itself")


def keys_or_count(keys: Tensor | None, x: Tensor) -> Int[Tensor, " batch"]:
    """The keys, or by default the images' positions."""
    return torch.arange(len(x)) if keys is None else keys
