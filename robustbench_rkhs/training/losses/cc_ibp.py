"""CC-IBP: cross-entropy of logit differences between an attack and interval bounds."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_rkhs.training.losses.searched import MixedLoss


class CCIBP(MixedLoss):
    r"""Cross-entropy of convex combinations of attacked and worst-case logit differences, mean over the batch.

    .. math:: CE\big( -[(1 - \alpha)\, m(x') + \alpha\, \underline m(x)],\, y \big), \qquad m_j = f_y - f_j, \qquad
              x' \approx \arg\max_{x' \in B_{\varepsilon'}(x)} CE(f(x'), y)

    m(x') bounds the smallest differences in the ball from above, the interval bounds (see `ibp`) from below. At alpha 0 it is
    adversarial training, at alpha 1 `ibp` without its clean term. `mtl_ibp` mixes the two losses instead of the differences; by
    convexity of the cross-entropy this loss is never above that one. The attack takes `steps` steps with BatchNorm's running
    statistics and dropout off; x' then goes through the model in its current mode. Bounds are of the network in eval mode;
    float32 also under autocast.
    Recommended: `schedule: {eps: {begin: 0.1, end: 0.6}}`. Raises UserError, naming the layer, for a layer without bounds.
    eps in pixels of [0, 1]. Cost: `steps` forward and image-only backward passes, three forward passes that are
    differentiated.
    Source: De Palma et al., "Expressive Losses for Verified Robustness via Convex Combinations", ICLR 2024.
    """

    name: Literal["cc_ibp"] = "cc_ibp"

    def mixed(
        self, logits: Float[Tensor, "batch classes"], worst: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        differences = logits.gather(1, y[:, None]) - logits
        return functional.cross_entropy(-((1 - self.alpha) * differences + self.alpha * worst), y)
