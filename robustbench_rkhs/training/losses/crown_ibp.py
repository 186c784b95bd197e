"""CROWN-IBP: cross-entropy of the worst-case logits by linear bounds."""

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations import ball, crown_margins, interval_margins, trace
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.losses.base import LossNode


class CrownIBP(LossNode):
    r"""Clean and worst-case cross-entropy, mean over the batch; the bounds are a mixture of linear and interval bounds.

    .. math:: \kappa\, CE(f(x), y) + (1 - \kappa)\, CE(-\underline m(x), y), \qquad
              \underline m = \beta\, \underline m^{CROWN} + (1 - \beta)\, \underline m^{IBP}

    Both are lower bounds of f_y - f_j over the ball, so each mixture is one. CROWN's linear bounds, back from the differences of
    logits to the image with intervals at every kink, are much tighter early in the training; in the end the network is trained
    for interval bounds. Bounds are of the network in eval mode (BatchNorm with its running statistics, which the clean pass
    updates as usual); float32 also under autocast.
    Recommended, as published: eps grows while kappa and beta fall:
    `schedule: {eps: {begin: 0.1, end: 0.6}, kappa: {start: 1, begin: 0.1, end: 0.6}, beta: {start: 1, begin: 0.1, end: 0.6}}`.
    Raises UserError, naming the layer, for a layer without bounds (max-pools have interval bounds only). eps in
    pixels of [0, 1]. Cost: three forward passes and, where beta > 0, one backward pass per class, all of them differentiated.
    Source: Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", ICLR 2020.
    """

    name: Literal["crown_ibp"] = "crown_ibp"
    norm: Norm = "linf"
    """Norm of the perturbation."""
    eps: Real = Field(0.1, ge=0)
    """Radius of the ball, in pixels of [0, 1]."""
    kappa: Real = Field(0.5, ge=0, le=1)
    """Share of the cross-entropy on clean images."""
    beta: Real = Field(1.0, ge=0, le=1)
    """Share of the linear bounds: 0 is the loss `ibp`."""
    box: Box = "unit"
    """`unit`: images lie in [0, 1], and linf balls are intersected with it; `none`: anywhere."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        clean = functional.cross_entropy(model(x).float(), y)
        with per_image(model):
            found = trace(model, ball(x, self.eps, self.norm, self.box))
            worst = interval_margins(found, y)
            if self.beta > 0:
                worst = self.beta * crown_margins(found, y) + (1 - self.beta) * worst
        return self.kappa * clean + (1 - self.kappa) * functional.cross_entropy(-worst, y)
