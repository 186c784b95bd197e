"""Virtual adversarial training: the divergence of the prediction along the direction that changes it most."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.attacks.ball import per_image as spread
from robustbench_rkhs.attacks.ball import unit
from robustbench_rkhs.nodes.node import Real, Seed
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode, keys_or_count
from robustbench_rkhs.training.penalties.slopes import slope


class VirtualAdversarial(PenaltyNode):
    r"""Penalise the divergence of the prediction under the perturbation that changes it most; labels are not used.

    .. math:: \frac{\alpha}{n} \sum_i KL\big( p(x_i) \,\|\, p(x_i + r_i) \big), \qquad
              r_i = \varepsilon\, \mathrm{unit}\big( \nabla_d KL( p(x_i) \,\|\, p(x_i + \xi d) ) \big)

    p: softmax of the logits; p(x) and r are not differentiated. d starts at random and is replaced by the unit gradient
    `steps` times: power iteration on the Hessian of KL at zero by a finite difference xi. BatchNorm uses its running
    statistics and dropout is off.
    The published xi = 1e-6 cannot work in float32: spread over 3,072 pixels it is 2e-8 each, less than half the spacing of
    float32 numbers near 0.5 (3e-8 to 6e-8), so that x + xi d equals x for most pixels, and the gradient of KL is mostly
    rounding. At 1e-2 the errors of rounding and curvature both stay at about a percent or less on images.
    Cost: one forward pass, `steps` forward and image-only backward passes, one forward and backward pass with weights.
    Source: Miyato et al., "Virtual Adversarial Training", TPAMI 2018.
    """

    name: Literal["virtual_adversarial"] = "virtual_adversarial"
    weight: Real = Field(1.0, ge=0)
    """Multiplier alpha."""
    eps: Real = Field(1.0, ge=0)
    """Length of the perturbation, in l2 pixels of [0, 1]."""
    xi: Real = Field(1e-2, gt=0)
    """Length of the finite difference, in l2 pixels of [0, 1]."""
    steps: int = Field(1, ge=1)
    """Power iterations."""
    seed: Seed = 0
    """Seed of the random directions."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        x = x.detach()
        direction = unit(draws(keys_or_count(keys, x), self.seed, x))
        with per_image(model):
            with torch.no_grad():
                answer = model(x).float().log_softmax(1)
            for _ in range(self.steps):
                probe = (x + self.xi * direction).requires_grad_()
                gradient = unit(slope(divergence(answer, model(probe)).sum(), probe))
                flat = spread(gradient.flatten(1).abs().amax(1) == 0, x)
                direction = torch.where(flat, direction, gradient)  # where no direction changes the prediction, any will do
            moved = model(x + self.eps * direction.detach())
        return self.weight * divergence(answer, moved).clamp_min(0).mean()


def divergence(answer: Float[Tensor, "batch classes"], logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """KL(p || q) of each image, in nats, from log p and the logits of q."""
    return functional.kl_div(logits.float().log_softmax(1), answer, reduction="none", log_target=True).sum(1)
