"""Radius loss: cross-entropy of the certified radii, independent of the scale of weights and logits."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.bounds.differentiable import gram_pairs
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.training.losses.base import LossNode


class Radius(LossNode):
    r"""Cross-entropy of the certified radii towards each other class, by Lipschitz bounds of logit differences.

    .. math:: r_j = \frac{f_y(x) - f_j(x)}{L_{yj}}, \qquad \ell = t \log\Big( 1 + \sum_{j \ne y} e^{(c - r_j) / t} \Big)

    min_j r_j is the radius that the margin certificate proves, negative where the image is misclassified. Multiplying the
    logits by a constant changes nothing, so growing norms cannot lower the loss: it is stable at learning rates at which
    `gloro` is not. On a network that is 1-Lipschitz by construction it is cross-entropy with temperature and offset.
    L: `bounds.differentiable.gram_pairs`, as of `gloro`. Raises Uncertifiable, naming the layer, where a layer with parameters
    has no such bound. Units: l2 pixels of [0, 1]. Cost: one forward pass, and `iterations` matrix products for each layer and step.
    Source: after Tsuzuku et al., NeurIPS 2018; temperature and offset, Prach & Lampert, ECCV 2022.
    """

    name: Literal["radius"] = "radius"
    offset: Real = Field(0.3, ge=0)
    """c: the required radius, in l2 pixels of [0, 1]."""
    temperature: Real = Field(0.15, gt=0)
    """t: small values give more weight to images near the offset."""
    iterations: int = Field(6, ge=1)
    """Gram iterations per layer: the bound exceeds the norm by a factor of at most rank^(2^-(iterations + 1))."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        logits = model(x).float()
        pairs = gram_pairs(model, tuple(x.shape[1:]), logits.shape[1], self.iterations).float()
        bounds = pairs[y].scatter(1, y[:, None], 1.0).clamp_min(torch.finfo(torch.float32).tiny)
        radii = (logits.gather(1, y[:, None]) - logits) / bounds
        short = ((self.offset - radii) / self.temperature).scatter(1, y[:, None], 0.0)  # the label's own term: exp(0) = 1
        loss: Tensor = self.temperature * short.logsumexp(1).mean()
        return loss
