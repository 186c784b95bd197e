"""What DDN and FMN share: gradient steps in a ball that shrinks where the image is misclassified and grows where it is not."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import distances, per_image, unit
from robustbench_rkhs.attacks.engine import Engine, EngineAttack, Value
from robustbench_rkhs.attacks.linearised import likeliest, nearest_classes, onto_plane, reach
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.node import Real

SCOUTED = 10
"""Steps after which a start is judged by what it found."""
LAST = 0.01
"""The last step's and radius change's share of the first."""


class RadiusAttack(EngineAttack):
    """Fields and search of the two; each says how a perturbation is put on its ball."""

    minimal_norm: ClassVar[bool] = True

    steps: int = Field(100, ge=1)
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

    def value(self, engine: Engine, at: Tensor) -> Value:
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
        near = nearest_classes(engine, at, likeliest(engine.clean[at], engine.y[at], self.candidates), self.starts)
        at, x = near.at, engine.x[near.at]
        image = x + onto_plane(x, near.gap, near.gradient, engine.norm, engine.box)
        radius = distances(x, image, engine.norm)
        length, found = radius.clone(), torch.full_like(radius, torch.inf)
        nearest = torch.full_like(engine.distance, torch.inf)
        held = torch.zeros_like(at, dtype=torch.bool)  # a point short of the boundary was seen
        for step in range(self.steps + 1):
            if step == self.steps:
                engine.logits(at, image)
                return
            told = engine.slope(at, image, self.value(engine, at))
            wrong = (told.logits.argmax(1) != engine.y[at]) | ~told.logits.isfinite().all(1)
            x = engine.x[at]
            away = distances(x, image, engine.norm)
            found = torch.where(wrong, torch.minimum(found, away), found)
            held |= ~wrong
            nearest = nearest.scatter_reduce(0, at, found, "amin")
            fade = LAST + (1 - LAST) * (1 + math.cos(math.pi * step / self.steps)) / 2
            radius = self._radius(
                radius, away, found, wrong, held, reach(margin(told.logits, engine.y[at]), told.gradient, engine.norm), fade
            )
            direction = unit(told.gradient) * (1 if engine.norm == "l2" else x[0].numel() ** 0.5)
            delta = image - x - direction * per_image((length * self.step_size * fade).to(x.dtype), x)
            image = x + self.placed(delta, radius.to(x.dtype))
            image = image.clamp(0, 1) if engine.box == "unit" else image
            on = engine.standing(at)
            if step >= SCOUTED:
                on &= ~(found > self.hopeless * nearest[at])
            if not on.all():
                at, image, radius, length, found, held = (values[on] for values in (at, image, radius, length, found, held))
                if not len(at):
                    return

    def _radius(self, radius: Tensor, away: Tensor, found: Tensor, wrong: Tensor, held: Tensor, gap: Tensor, fade: float) -> Tensor:
        """Smaller where wrong, larger where not; by the linearised distance to the boundary while only one side was seen."""
        gap = gap.to(radius).nan_to_num(nan=0.0, posinf=0.0)
        shrunk = torch.minimum(radius, away)
        gamma = self.gamma * fade
        inwards = torch.where(
            held, shrunk * (1 - gamma), torch.minimum((shrunk - gap).maximum(shrunk / 2), shrunk * (1 - self.gamma))
        )
        never = found == torch.inf
        outwards = torch.where(
            never, torch.maximum(away + gap, radius * (1 + self.gamma)).minimum(2 * radius), radius * (1 + gamma)
        )
        return torch.where(wrong, inwards, outwards)
