"""Base of DDN, FMN and ALMA: gradient steps from starts on the linearised boundaries of the nearest classes."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.hyperplane import distance_to_plane, onto_plane
from robustbench_rkhs.attacks.line_search import nearer
from robustbench_rkhs.attacks.linearised import candidates, nearest_classes
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.attacks.passes import Value
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.runtime.heartbeat import staged

SCOUTED = 10
"""Steps after which a start is judged by what it found."""


class Seen(NamedTuple):
    """The state of each start's perturbation."""

    delta: Float[Tensor, "some *image"]
    away: Float64[Tensor, " some"]
    """Its length, which the box may have shortened."""
    gradient: Float[Tensor, "some *image"]
    gap: Float64[Tensor, " some"]
    """Linearised distance from there to the boundary; infinite where the gradient is zero."""
    wrong: Bool[Tensor, " some"]
    held: Bool[Tensor, " some"]
    """A point short of the boundary was seen."""
    never: Bool[Tensor, " some"]
    """No point beyond the boundary was seen."""
    step: int
    """How many steps were taken."""


class StartsAttack(EngineAttack):
    """Shared fields and loop; each attack defines the state that it keeps of a start, and its step."""

    minimal_norm: ClassVar[bool] = True

    steps: int = Field(50, ge=1)
    """Gradient steps of each start."""
    starts: int = Field(3, ge=1)
    """Starts, on the linearised boundaries of the nearest classes."""
    candidates: int | None = Field(None, ge=1)
    """Number of likeliest other classes among which the nearest are chosen; default: all of up to 200, 50 of more."""
    hopeless: Real = Field(1.05, gt=1)
    """After ten steps a start is dropped if the nearest it found is this many times as far as the image's nearest."""
    closer: int = Field(8, ge=0)
    """Random starts inside the distance found so far, of a few gradient steps each (only without a finite eps)."""

    @property
    def scale_invariant(self) -> bool:
        return True

    def value(self, engine: Engine, at: Int[Tensor, " some"]) -> Value:
        """The loss that is minimised."""
        return lambda logits, rows: margin(logits, engine.y[at[rows]])

    def begin(self, delta: Float[Tensor, "some *image"], away: Float64[Tensor, " some"]) -> tuple[Tensor, ...]:
        """The state of each start before the first step; `away`: the length of `delta`, which is its linearised distance."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    def move(self, seen: Seen, kept: tuple[Tensor, ...]) -> tuple[Float[Tensor, "some *image"], tuple[Tensor, ...]]:
        """The next perturbation, before it is clipped to the box, and the new state."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        self.walk(engine, engine.open())
        self.rescue(engine)

    def rescue(self, engine: Engine) -> None:
        """Random starts, FAB from what they find, and secant steps: in the whole box for images that no start broke, then inside
        the distance found so far (only without an eps)."""
        fab = FAB(norm=self.norm, box=self.box, seed=self.seed, steps=self.steps, targets=self.starts, closer=self.closer)
        nearer(engine, fab.rescue(engine))

    @torch.no_grad()
    def walk(self, engine: Engine, at: Int[Tensor, " some"]) -> None:
        """Run all starts of the images at these positions, step by step."""
        if not len(at) or engine.clean.shape[1] < 2:
            return
        near = nearest_classes(engine, at, candidates(engine, at, self.candidates), self.starts)
        at, x = near.at, engine.x[near.at]
        image = x + onto_plane(x, near.gap, near.gradient, engine.norm, engine.box)
        away = distances(x, image, engine.norm)
        found, kept = torch.full_like(away, torch.inf), self.begin(image - x, away)
        nearest = torch.full_like(engine.distance, torch.inf)  # over all starts of an image, inside its eps or not
        held = torch.zeros_like(at, dtype=torch.bool)
        for step in staged(range(self.steps)):
            told = engine.slope(at, image, self.value(engine, at))
            x, away = engine.x[at], distances(engine.x[at], image, engine.norm)
            wrong = told.wrong
            found = torch.where(wrong, torch.minimum(found, away), found)
            nearest = nearest.scatter_reduce(0, at, found, "amin")
            held |= ~wrong
            gap = distance_to_plane(margin(told.logits, engine.y[at]), told.gradient, engine.norm).to(away)
            seen = Seen(image - x, away, told.gradient, gap, wrong, held, found == torch.inf, step)
            delta, kept = self.move(seen, kept)
            image = (x + delta).clamp(0, 1) if engine.box == "unit" else x + delta
            apart = torch.where(found == torch.inf, away, found)  # a start that never crossed may still cross nearby
            on = engine.standing(at) & ~((step >= SCOUTED) & (apart > self.hopeless * nearest[at]))
            at, image, found, held, *rest = (values[on] for values in (at, image, found, held, *kept))
            kept = tuple(rest)
            if not len(at):
                return
        engine.logits(at, image)
