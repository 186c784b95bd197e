"""What DDN and FMN share: gradient steps in a ball that shrinks where the image is misclassified and grows where it is not."""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import distances, per_image, unit
from robustbench_rkhs.attacks.engine import Engine, Value
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.hyperplane import distance_to_plane, onto_plane
from robustbench_rkhs.attacks.linearised import nearest_classes
from robustbench_rkhs.attacks.objective import likeliest_classes, margin, misclassified
from robustbench_rkhs.node import Real

SCOUTED = 10
"""Steps after which a start is judged by what it found."""
LAST = 0.01
"""The last step's and radius change's share of the first."""


class Seen(NamedTuple):
    """What is known of each start's perturbation."""

    radius: Float64[Tensor, " some"]
    away: Float64[Tensor, " some"]
    """Its length, which the box may have made less than the radius."""
    gap: Float64[Tensor, " some"]
    """Linearised distance from there to the boundary."""
    wrong: Bool[Tensor, " some"]
    held: Bool[Tensor, " some"]
    """A point short of the boundary was seen."""
    never: Bool[Tensor, " some"]
    """No point beyond the boundary was seen."""


class RadiusAttack(EngineAttack):
    """Fields and search of the two; each says how a perturbation is put on its ball."""

    minimal_norm: ClassVar[bool] = True

    steps: int = Field(50, ge=1)
    """Gradient steps of each start."""
    step_size: Real = Field(1.0, gt=0)
    """Length of the first step, in linearised distances of the image to its boundary; the last is a hundredth of it."""
    gamma: Real = Field(0.05, gt=0, lt=1)
    """Share by which the radius shrinks or grows at first; a hundredth of it at last."""
    starts: int = Field(3, ge=1)
    """Starts, on the linearised boundaries of the nearest classes."""
    candidates: int = Field(10, ge=1)
    """Likeliest other classes that are looked at when the nearest are chosen."""
    hopeless: Real = Field(1.05, gt=1)
    """After ten steps a start leaves where the nearest it found is so many times as far as the image's nearest."""

    @property
    def scale_invariant(self) -> bool:
        return True

    def value(self, engine: Engine, at: Int[Tensor, " some"]) -> Value:
        """What is lowered."""
        return lambda logits, rows: margin(logits, engine.y[at[rows]])

    def placed(self, delta: Float[Tensor, "some *image"], radius: Float[Tensor, " some"]) -> Float[Tensor, "some *image"]:
        """The perturbation, put on its ball or into it."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        at = engine.open()
        if not len(at) or engine.clean.shape[1] < 2:
            return
        near = nearest_classes(engine, at, likeliest_classes(engine.clean[at], engine.y[at], self.candidates), self.starts)
        at, x = near.at, engine.x[near.at]
        image = x + onto_plane(x, near.gap, near.gradient, engine.norm, engine.box)
        radius = distances(x, image, engine.norm)
        first, found = radius.clone(), torch.full_like(radius, torch.inf)
        nearest = torch.full_like(engine.distance, torch.inf)  # of all starts of an image, inside its eps or not
        held = torch.zeros_like(at, dtype=torch.bool)  # a point short of the boundary was seen
        root = 1.0 if engine.norm == "l2" else x[:1].numel() ** 0.5
        for step in range(self.steps):
            told = engine.slope(at, image, self.value(engine, at))
            x, away = engine.x[at], distances(engine.x[at], image, engine.norm)
            wrong = misclassified(told.logits, engine.y[at])
            found = torch.where(wrong, torch.minimum(found, away), found)
            nearest = nearest.scatter_reduce(0, at, found, "amin")
            held |= ~wrong
            fade = LAST + (1 - LAST) * (1 + math.cos(math.pi * step / self.steps)) / 2
            gap = distance_to_plane(margin(told.logits, engine.y[at]), told.gradient, engine.norm).to(radius)
            radius = self._radius(Seen(radius, away, gap, wrong, held, found == torch.inf), fade)
            length = (root * self.step_size * fade * first).to(x.dtype)
            delta = image - x - unit(told.gradient) * per_image(length, x)
            image = x + self.placed(delta, radius.to(x.dtype))
            image = image.clamp(0, 1) if engine.box == "unit" else image
            on = engine.standing(at) & ~((step >= SCOUTED) & (found > self.hopeless * nearest[at]))
            at, image, radius, first, found, held = (values[on] for values in (at, image, radius, first, found, held))
            if not len(at):
                return
        engine.logits(at, image)

    def _radius(self, seen: Seen, fade: float) -> Float64[Tensor, " some"]:
        """Smaller where wrong, larger where not; by the linearised distance to the boundary while only one side was seen."""
        gap = torch.where(seen.gap.isfinite(), seen.gap, 0)
        inside = torch.minimum(seen.radius, seen.away)
        jump = (inside - gap).clamp(inside / 2, inside * (1 - self.gamma))
        inwards = torch.where(seen.held, inside * (1 - self.gamma * fade), jump)
        jump = (seen.away + gap).clamp(seen.radius * (1 + self.gamma), 2 * seen.radius)
        outwards = torch.where(seen.never, jump, seen.radius * (1 + self.gamma * fade))
        return torch.where(seen.wrong, inwards, outwards)
