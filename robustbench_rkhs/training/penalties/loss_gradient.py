"""Loss-gradient penalties: double backpropagation."""

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode
from robustbench_rkhs.training.penalties.slopes import slope


class LossGradient(PenaltyNode):
    r"""Penalise the norm of the loss's gradient with respect to each image.

    .. math:: \frac{\lambda}{n} \sum_i \lVert \nabla_x \ell(x_i, y_i) \rVert_2^2
              \quad \text{or} \quad \frac{\lambda}{n} \sum_i \lVert \nabla_x \ell(x_i, y_i) \rVert_1

    with the cross-entropy l: the first for small l2, the second for small linf perturbations. BatchNorm uses its running
    statistics and dropout is off, so that gradients are per image. Units: squared nats per squared pixel (l2),
    nats per pixel (l1).
    Cost: one forward pass, one backward pass to the images, and the backward pass of both.
    Source: Drucker & Le Cun, 1992; grad-l2 and grad-l1 of Bietti et al., ICML 2019.
    """

    name: Literal["loss_gradient"] = "loss_gradient"
    weight: Real = Field(0.1, ge=0)
    """Multiplier lambda."""
    norm: Literal["l2", "l1"] = "l2"
    """`l2`: squared l2 norm; `l1`: l1 norm."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        images = x.detach().requires_grad_()
        with per_image(model):
            total = functional.cross_entropy(model(images).float(), y, reduction="sum")
            gradient = slope(total, images, graph=True).flatten(1)
        sizes = gradient.square().sum(1) if self.norm == "l2" else gradient.abs().sum(1)
        return self.weight * sizes.mean()
