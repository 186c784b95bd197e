"""What DDN, FMN and ALMA share: they start on the linearised boundaries of the nearest classes and walk by the gradient."""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.engine import Engine, EngineAttack, Value
from robustbench_rkhs.attacks.linearised import Near, likeliest, nearest_classes, onto_plane, reach
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.node import Real

LAST = 0.01
"""What `fade` ends at."""


class Seen(NamedTuple):
    """What is known of each start's present point."""

    x: Float[Tensor, "some *image"]
    delta: Float[Tensor, "some *image"]
    away: Float64[Tensor, " some"]
    """Length of delta."""
    gradient: Float[Tensor, "some *image"]
    margin: Float[Tensor, " some"]
    wrong: Bool[Tensor, " some"]
    never: Bool[Tensor, " some"]
    """No misclassified point was seen yet."""
    gap: Float64[Tensor, " some"]
    """Linearised distance from there to the boundary; 0 where there is no slope."""
    step: int
    fade: float
    """From 1 to a hundredth along a cosine."""


class StartsAttack(EngineAttack):
    """Fields and loop of the three; each says what it keeps of a start and where it moves."""

    minimal_norm: ClassVar[bool] = True
    scouted: ClassVar[int] = 10
    """Steps after which a start is judged by what it found."""

    steps: int = Field(50, ge=1)
    """Gradient steps of each start."""
    starts: int = Field(3, ge=1)
    """Starts, on the linearised boundaries of the nearest classes."""
    candidates: int = Field(10, ge=1)
    """Likeliest other classes that are looked at when the nearest are chosen."""
    hopeless: Real = Field(1.05, gt=1)
    """After its first steps a start leaves where the nearest it found is so many times as far as the image's nearest."""

    @property
    def scale_invariant(self) -> bool:
        return True

    def value(self, engine: Engine, at: Int[Tensor, " some"]) -> Value:
        """What is lowered."""
        return lambda logits, rows: margin(logits, engine.y[at[rows]])

    def begin(self, near: Near, length: Float64[Tensor, " some"]) -> tuple[Tensor, ...]:
        """What is kept of each start, before the first step; `length`: its linearised distance."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    def move(self, seen: Seen, kept: tuple[Tensor, ...]) -> tuple[Float[Tensor, "some *image"], tuple[Tensor, ...]]:
        """The next perturbation, and what is kept."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        at = engine.open()
        if not len(at) or engine.clean.shape[1] < 2:
            return
        near = nearest_classes(engine, at, likeliest(engine.clean[at], engine.y[at], self.candidates), self.starts)
        at, x = near.at, engine.x[near.at]
        image = x + onto_plane(x, near.gap, near.gradient, engine.norm, engine.box)
        away = distances(x, image, engine.norm)
        found, kept = torch.full_like(away, torch.inf), self.begin(near, away)
        nearest = torch.full_like(engine.distance, torch.inf)  # of all starts of an image, inside its eps or not
        for step in range(self.steps):
            told = engine.slope(at, image, self.value(engine, at))
            x, away = engine.x[at], distances(engine.x[at], image, engine.norm)
            wrong = (told.logits.argmax(1) != engine.y[at]) | ~told.logits.isfinite().all(1)
            found = torch.where(wrong, torch.minimum(found, away), found)
            nearest = nearest.scatter_reduce(0, at, found, "amin")
            short = margin(told.logits, engine.y[at]).nan_to_num(nan=0.0)
            gap = reach(short, told.gradient, engine.norm).to(away)
            gap = torch.where(gap.isfinite(), gap, 0)
            fade = LAST + (1 - LAST) * (1 + math.cos(math.pi * step / self.steps)) / 2
            seen = Seen(x, image - x, away, told.gradient, short, wrong, found == torch.inf, gap, step, fade)
            delta, kept = self.move(seen, kept)
            image = (x + delta).clamp(0, 1) if engine.box == "unit" else x + delta
            on = engine.standing(at) & ~((step >= self.scouted) & (found > self.hopeless * nearest[at]))
            at, image, found, *rest = (values[on] for values in (at, image, found, *kept))
            kept = tuple(rest)
            if not len(at):
                return
        engine.logits(at, image)
