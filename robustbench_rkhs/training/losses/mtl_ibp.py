"""MTL-IBP: a mixture of adversarial and certified training."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_rkhs.training.losses.searched import MixedLoss


class MtlIbp(MixedLoss):
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

    def mixed(
        self, logits: Float[Tensor, "batch classes"], worst: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        return (1 - self.alpha) * functional.cross_entropy(logits, y) + self.alpha * functional.cross_entropy(-worst, y)
