"""Curvature penalty: the change of the loss's gradient along one direction, by finite differences."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.attacks.ball import unit
from robustbench_rkhs.nodes.node import Real, Seed, UserError
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode, keys_or_count


class Curvature(PenaltyNode):
    r"""Penalise the Hessian of the cross-entropy along one direction of each image.

    .. math:: \frac{\lambda}{n} \sum_i \frac{\lVert \nabla_x l(x_i + h z_i) - \nabla_x l(x_i) \rVert_2^2}{h^2}
              \approx \frac{\lambda}{n} \sum_i \lVert H_i z_i \rVert_2^2, \qquad \lVert z_i \rVert_2 = 1

    l is the cross-entropy of one image; z its gradient, the gradient's sign or a random direction, normalised in l2 and not
    differentiated (zero, and so no penalty, where the gradient is zero). x + h z may leave [0, 1]. BatchNorm uses its
    running statistics and dropout is off.
    The published form is not divided by h^2 and takes standardised pixels: gamma = 4 and h = 1.5 on CIFAR-10, whose pixels
    deviate by sigma = 0.2, are h = 1.5 sigma = 0.3 and weight gamma (1.5 sigma^2)^2 = 0.0144 here, our defaults. There h grows
    over the first epochs: `schedule: {h: {start: 0.05, end: 0.1}}` (a ramp from 0 would divide by zero).
    Units: h in pixels of [0, 1] (l2). Cost: two forward passes; two backward passes, both differentiated again.
    Raises UserError where a ramp brings h to zero. Source: Moosavi-Dezfooli et al., CVPR 2019.
    """

    name: Literal["curvature"] = "curvature"
    weight: Real = Field(0.0144, ge=0)
    """Multiplier lambda."""
    h: Real = Field(0.3, gt=0)
    """Length of the step, l2 in pixels."""
    direction: Literal["gradient", "sign", "random"] = "sign"
    """The direction z: the gradient, its sign, or random."""
    seed: Seed = 0
    """Seed of the random directions."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        if self.h <= 0:
            raise UserError(f"curvature: expected a step h above 0, found {self.h:g}: start its ramp above 0")
        with per_image(model):
            here = _slope(model, x, y)
            if self.direction == "random":
                z = unit(draws(keys_or_count(keys, x), self.seed, x))
            else:
                z = unit(here.detach().sign() if self.direction == "sign" else here.detach())
            there = _slope(model, x + self.h * z, y)
        return self.weight * (there - here).flatten(1).square().sum(1).mean() / self.h**2


def _slope(model: nn.Module, x: Float[Tensor, "batch *image"], y: Int[Tensor, " batch"]) -> Float[Tensor, "batch *image"]:
    """The gradient of each image's cross-entropy, with a graph over the weights."""
    x = x.detach().requires_grad_()
    loss = functional.cross_entropy(model(x), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return gradient
