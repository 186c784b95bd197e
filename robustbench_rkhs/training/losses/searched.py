"""Fields and inner attack of losses that bound the network around an attacked image."""

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.nodes.node import Real, Seed
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations import ball, interval_margins, trace
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.losses.base import LossNode
from robustbench_rkhs.training.losses.inner_search import ascend, keys_or_positions


class SearchedLoss(LossNode):
    """Base class of losses with an attack on the cross-entropy inside."""

    attacks: ClassVar[bool] = True

    norm: Norm = "linf"
    """Norm of the perturbation."""
    eps: Real = Field(0.1, ge=0)
    """Radius of the ball of the bounds, in pixels of [0, 1]."""
    steps: int = Field(8, ge=1)
    """Gradient steps of the attack."""
    step_size: Real | None = Field(None, gt=0)
    """Length of a step, in the norm's unit; default: 2.5 times the attack's radius / steps."""
    box: Box = "unit"
    """`unit`: images lie in [0, 1], and so do the attack and linf balls; `none`: anywhere."""
    seed: Seed = 0
    """Seed of the random starts."""

    def attacked(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Tensor | None, eps: float
    ) -> Float[Tensor, "batch *image"]:
        """Images of high cross-entropy within eps, from a random start, with BatchNorm's running statistics."""
        noise = draws(keys_or_positions(keys, x), self.seed, x)
        with per_image(model):
            return ascend(
                lambda images: functional.cross_entropy(model(images).float(), y, reduction="none"),
                x,
                x + torch.erf(noise / 2**0.5) * eps,  # uniform in the cube; `ascend` pulls it into an l2 ball
                norm=self.norm,
                eps=eps,
                steps=self.steps,
                step_size=self.step_size or 2.5 * eps / self.steps,
                box=self.box,
            )


class MixedLoss(SearchedLoss):
    """Base class of losses that mix an attacked image with interval bounds around the image."""

    attack_eps: Real | None = Field(None, ge=0)
    """eps': radius of the ball of the attack; default: eps. At small radii a larger one is recommended."""
    alpha: Real = Field(0.1, ge=0, le=1)
    """Share of the worst case."""

    @abstractmethod
    def mixed(
        self, logits: Float[Tensor, "batch classes"], worst: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The loss, from the logits at the attacked images and lower bounds of f_y - f_j around the images."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        attacked = self.attacked(model, x.detach(), y, keys, self.eps if self.attack_eps is None else self.attack_eps)
        logits = model(attacked).float()
        with per_image(model):
            worst = interval_margins(trace(model, ball(x, self.eps, self.norm, self.box)), y)
        return self.mixed(logits, worst, y)
