"""What DDN and FMN share: gradient steps in a ball that shrinks where the image is misclassified and grows where it is not."""

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import per_image, unit
from robustbench_rkhs.attacks.linearised import Near
from robustbench_rkhs.attacks.starts import Seen, StartsAttack
from robustbench_rkhs.node import Real


class RadiusAttack(StartsAttack):
    """Fields and steps of the two; each says how a perturbation is put on its ball."""

    step_size: Real = Field(1.0, gt=0)
    """Length of the first step, in linearised distances of the image to its boundary; the last is a hundredth of it."""
    gamma: Real = Field(0.05, gt=0, lt=1)
    """Share by which the radius shrinks or grows at first; a hundredth of it at last."""

    def placed(self, delta: Float[Tensor, "some *image"], radius: Float[Tensor, " some"]) -> Float[Tensor, "some *image"]:
        """The perturbation, put on its ball or into it."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    def begin(self, near: Near, length: Float64[Tensor, " some"]) -> tuple[Tensor, ...]:
        """First length, radius, and whether a point short of the boundary was seen."""
        return length, length.clone(), torch.zeros_like(length, dtype=torch.bool)

    def move(self, seen: Seen, kept: tuple[Tensor, ...]) -> tuple[Float[Tensor, "some *image"], tuple[Tensor, ...]]:
        """Along the gradient, and onto the ball."""
        first, radius, held = kept
        held = held | ~seen.wrong
        radius = self._radius(seen, radius, held)
        root = 1.0 if self.norm == "l2" else seen.x[:1].numel() ** 0.5
        length = (root * self.step_size * seen.fade * first).to(seen.x.dtype)
        delta = seen.delta - unit(seen.gradient) * per_image(length, seen.x)
        return self.placed(delta, radius.to(seen.x.dtype)), (first, radius, held)

    def _radius(self, seen: Seen, radius: Tensor, held: Tensor) -> Float64[Tensor, " some"]:
        """Smaller where wrong, larger where not; by the linearised distance to the boundary while only one side was seen."""
        gamma, inside = self.gamma * seen.fade, torch.minimum(radius, seen.away)  # the box may have shortened delta
        jump = (inside - seen.gap).clamp(inside / 2, inside * (1 - self.gamma))
        inwards = torch.where(held, inside * (1 - gamma), jump)
        jump = (seen.away + seen.gap).clamp(radius * (1 + self.gamma), 2 * radius)
        outwards = torch.where(seen.never, jump, radius * (1 + gamma))
        return torch.where(seen.wrong, inwards, outwards)
