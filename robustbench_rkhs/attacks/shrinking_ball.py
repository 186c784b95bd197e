"""Base of DDN and FMN: gradient steps in a ball that shrinks where the image is misclassified and grows where it is not."""

import math

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import per_image, unit
from robustbench_rkhs.attacks.multi_start import Seen, StartsAttack
from robustbench_rkhs.nodes.node import Real

LAST = 0.01
"""The last step and radius change, as a share of the first."""


class RadiusAttack(StartsAttack):
    """Shared fields and step; each attack defines how a perturbation is projected onto its ball."""

    step_size: Real = Field(1.0, gt=0)
    """Length of the first step, as a multiple of the image's linearised distance to the boundary; the last is a hundredth of it."""
    gamma: Real = Field(0.05, gt=0, lt=1)
    """Share by which the radius shrinks or grows at first; a hundredth of it at the end."""

    def placed(self, delta: Float[Tensor, "some *image"], radius: Float[Tensor, " some"]) -> Float[Tensor, "some *image"]:
        """The perturbation, projected onto the sphere or into the ball."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    def begin(self, delta: Float[Tensor, "some *image"], away: Float64[Tensor, " some"]) -> tuple[Tensor, ...]:
        """The radius, and the linearised distance that is the unit of the step length."""
        return away.clone(), away

    def move(self, seen: Seen, kept: tuple[Tensor, ...]) -> tuple[Float[Tensor, "some *image"], tuple[Tensor, ...]]:
        """A step of decreasing length along the gradient, then the projection onto the ball of the new radius."""
        radius, first = kept
        fade = LAST + (1 - LAST) * (1 + math.cos(math.pi * seen.step / self.steps)) / 2
        radius = self._radius(seen, radius, fade)
        root = 1.0 if self.norm == "l2" else seen.delta[:1].numel() ** 0.5
        length = (root * self.step_size * fade * first).to(seen.delta.dtype)
        delta = seen.delta - unit(seen.gradient) * per_image(length, seen.delta)
        return self.placed(delta, radius.to(delta.dtype)), (radius, first)

    def _radius(self, seen: Seen, radius: Float64[Tensor, " some"], fade: float) -> Float64[Tensor, " some"]:
        """The next radius: smaller where misclassified, else larger; the linearised distance while only one side was seen."""
        gap = torch.where(seen.gap.isfinite(), seen.gap, 0)
        inside = torch.minimum(radius, seen.away)
        jump = (inside - gap).clamp(inside / 2, inside * (1 - self.gamma))
        inwards = torch.where(seen.held, inside * (1 - self.gamma * fade), jump)
        jump = (seen.away + gap).clamp(radius * (1 + self.gamma), 2 * radius)
        outwards = torch.where(seen.never, jump, radius * (1 + self.gamma * fade))
        return torch.where(seen.wrong, inwards, outwards)
