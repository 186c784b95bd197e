"""SABR: interval bounds of a small ball around an attacked image."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.relaxations import ball, interval_margins, trace
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.losses.searched import SearchedLoss


class SABR(SearchedLoss):
    r"""Worst-case cross-entropy by interval bounds of a small ball around an attacked image, mean over the batch.

    .. math:: CE(-\underline m_\tau(x'), y), \quad \tau = \lambda \varepsilon, \qquad
              x' \approx \arg\max_{x' \in B_{\varepsilon - \tau}(x)} CE(f(x'), y), \qquad
              \underline m_{\tau, j}(x') \le \min_{z \in B_\tau(x')} f_y(z) - f_j(z)

    The small ball lies in that of radius eps, so its bounds hold for a part of it only: the training is less regularised than
    `ibp`, and the certificate must prove the rest. At share 0 it is adversarial training, at share 1 `ibp` without its clean term.
    The attack takes `steps` steps with BatchNorm's running statistics and dropout off; x' also goes through the model in its
    current mode once, which updates these statistics. Bounds are of the network in eval mode; float32 also under autocast.
    Recommended: `schedule: {eps: {begin: 0.1, end: 0.6}}`. Raises UserError, naming the layer, for a layer without bounds.
    eps in pixels of [0, 1]. Cost: `steps` forward and image-only backward passes, one forward pass, two that are differentiated.
    Source: Mueller et al., "Certified Training: Small Boxes are All You Need", ICLR 2023.
    """

    name: Literal["sabr"] = "sabr"
    share: Real = Field(0.4, ge=0, le=1)
    """lambda: radius of the small ball, as a share of eps."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        small = self.share * self.eps
        attacked = self.attacked(model, x.detach(), y, keys, self.eps - small)
        with torch.no_grad():
            model(attacked)
        with per_image(model):
            worst = interval_margins(trace(model, ball(attacked, small, self.norm, self.box)), y)
        return functional.cross_entropy(-worst, y)
