"""A loss of your own: `loss: {name: "examples/own/own_loss.py:Focal", gamma: 2}` in a recipe of models/."""

from torch import Tensor, nn

from robustbench_rkhs.training.losses.base import LossNode


class Focal(LossNode):
    r"""Cross-entropy that looks away from easy images: :math:`-(1 - p_y)^\gamma \log p_y`. Source: Lin et al., ICCV 2017."""

    gamma: float = 2.0
    """How far it looks away."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor | None = None) -> Tensor:
        log = model(x).log_softmax(1).gather(1, y[:, None])[:, 0]
        return -((1 - log.exp()) ** self.gamma * log).mean()
