"""A penalty of your own: `penalties: [{name: "examples/own/own_penalty.py:Confidence", weight: 0.1}]` in a recipe of models/."""

from torch import Tensor, nn

from robustbench_rkhs.runtime.modes import evaluating
from robustbench_rkhs.training.penalties.base import PenaltyNode


class Confidence(PenaltyNode):
    r"""The mean square of the logits: weight times :math:`\frac1n \sum_i \lVert f(x_i) \rVert_2^2`."""

    regression = True

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor | None = None) -> Tensor:
        with evaluating(model):  # BatchNorm learns nothing from it
            return self.weight * model(x).square().sum(1).mean()
