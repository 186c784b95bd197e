"""MTL-IBP: a mixture of adversarial and certified training."""

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.relaxations import ball, interval_margins, trace
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.losses.searched import SearchedLoss


class MtlIbp(SearchedLoss):
    r"""Adversarial and worst-case cross-entropy, mean over the batch.

    .. math:: (1 - \alpha)\, CE(f(x'), y) + \alpha\, CE(-\underline m(x), y), \qquad
              x' \approx \arg\max_{x' \in B_{\varepsilon'}(x)} CE(f(x'), y)

    The first term is a lower bound of the worst cross-entropy in the ball, the second (interval bound propagation, see `ibp`) an
    upper one: alpha interpolates between adversarial and certified training. The attack starts at a random point of the ball and
    takes `steps` steps with BatchNorm's running statistics and dropout off, without weight gradients; x' then goes through
    the model in its current mode. Bounds are of the network in eval mode; float32 also under autocast.
    Recommended: `schedule: {eps: {begin: 0.1, end: 0.6}}`, the ramp of the published training (the attack follows, unless it has
    its own radius, which then needs the same ramp). Raises UserError, naming the layer, for a layer without bounds.
    eps in pixels of [0, 1]. Cost: `steps` forward and image-only backward passes, three forward passes that are
    differentiated.
    Source: De Palma et al., "Expressive Losses for Verified Robustness via Convex Combinations", ICLR 2024.
    """

    name: Literal["mtl_ibp"] = "mtl_ibp"
    attack_eps: Real | None = Field(None, ge=0)
    """eps': radius of the ball of the attack; default: eps. At small radii a larger one is recommended."""
    alpha: Real = Field(0.1, ge=0, le=1)
    """Weight of the worst-case term."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        attacked = self.attacked(model, x.detach(), y, keys, self.eps if self.attack_eps is None else self.attack_eps)
        adversarial = functional.cross_entropy(model(attacked).float(), y)
        with per_image(model):
            worst = interval_margins(trace(model, ball(x, self.eps, self.norm, self.box)), y)
        return (1 - self.alpha) * adversarial + self.alpha * functional.cross_entropy(-worst, y)
