"""Interval bound propagation: cross-entropy of the worst-case logits by interval bounds."""

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations import ball, interval_margins, trace
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.losses.base import LossNode


class IBP(LossNode):
    r"""Clean and worst-case cross-entropy by interval bounds, mean over the batch.

    .. math:: \kappa\, CE(f(x), y) + (1 - \kappa)\, CE(-\underline m(x), y), \qquad
              \underline m_j(x) \le \min_{x' \in B_\varepsilon(x)} f_y(x') - f_j(x')

    The bounds are those of interval bound propagation, the last layer merged with the differences. The second term is an upper
    bound on the cross-entropy of every image in the ball. Bounds are of the network in eval mode (BatchNorm with its running
    statistics, which the clean pass updates as usual); float32 also under autocast.
    Recommended: ramps for eps and kappa, as full eps from the start makes all outputs equal:
    `schedule: {eps: {begin: 0.1, end: 0.6}, kappa: {start: 1, begin: 0.1, end: 0.6}}`. Raises UserError, naming the layer, for a
    layer without bounds. eps in pixels of [0, 1]. Cost: three forward passes, all of them differentiated.
    Source: Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models", 2018.
    """

    name: Literal["ibp"] = "ibp"
    norm: Norm = "linf"
    """Norm of the perturbation. The first affine layer is exact for both norms; later layers use boxes."""
    eps: Real = Field(0.1, ge=0)
    """Radius of the ball, in pixels of [0, 1]."""
    kappa: Real = Field(0.5, ge=0, le=1)
    """Share of the cross-entropy on clean images."""
    box: Box = "unit"
    """`unit`: images lie in [0, 1], and linf balls are intersected with it; `none`: anywhere."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        clean = functional.cross_entropy(model(x).float(), y)
        with per_image(model):
            worst = interval_margins(trace(model, ball(x, self.eps, self.norm, self.box)), y)
        return self.kappa * clean + (1 - self.kappa) * functional.cross_entropy(-worst, y)
