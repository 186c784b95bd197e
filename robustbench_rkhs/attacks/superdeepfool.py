"""SuperDeepFool: DeepFool to the boundary, then back along the boundary's normal."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import distances, per_image
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.hyperplane import onto_plane
from robustbench_rkhs.attacks.line_search import nearer
from robustbench_rkhs.attacks.linearised import candidates, nearest_classes
from robustbench_rkhs.attacks.objective import gap as gap_to
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.runtime.heartbeat import staged

OVERSHOOT = 0.02
"""DeepFool's overshoot: the whole perturbation is lengthened by this share, so that it crosses the boundary."""
HAIR = 1e-3
"""The overshoot of a projection: smaller, as it ends on a plane that was linearised right there."""

SECANT = 3
"""Forward passes of the secant steps at the end."""


class SuperDeepFool(EngineAttack):
    r"""DeepFool steps across the boundary, then the perturbation projected onto the boundary's normal, repeatedly.

    .. math:: z \leftarrow z + \arg\min_d \lVert d \rVert : g(z) + \langle \nabla g(z), d \rangle = 0 \quad (g(z) \ge 0), \qquad
              z \leftarrow x + \arg\min_d \lVert d \rVert : g(z) + \langle \nabla g(z), x + d - z \rangle = 0 \quad (g(z) < 0)

    g = f_y - f_t for the `targets` other classes t that are nearest by linearisation at x, one run per class. Both steps are the
    shortest in l2 or linf that stay in the box. A run ends where its projections stop moving, or lie `hopeless` times as far as
    the nearest image found. A search along the line from the image to the adversarial example ends the attack: secant steps.
    An image that no run broke gets random starts in the whole box, and FAB from what they find (only without a finite eps).
    Cost: at most 2 + targets * steps + line forward and min(candidates, classes - 1) + targets * steps backward passes.
    Source: Abdollahi et al., SuperDeepFool, arXiv 2303.12481 (m = infinity, n = 1); Moosavi-Dezfooli et al., CVPR 2016.
    """

    minimal_norm: ClassVar[bool] = True

    name: Literal["superdeepfool"] = "superdeepfool"
    steps: int = Field(10, ge=1)
    """Steps of each run, both kinds together."""
    targets: int = Field(3, ge=1)
    """Runs, each towards one class."""
    candidates: int | None = Field(None, ge=1)
    """Number of likeliest other classes among which the nearest are chosen; default: all of up to 200, 50 of more."""
    hopeless: Real = Field(1.15, gt=1)
    """A run stops once its projection lies this many times as far as the nearest image found."""
    line: int = Field(5, ge=0)
    """Most forward passes of the search along the line at the end; below 3, or with a finite eps, it is a binary search."""

    @property
    def scale_invariant(self) -> bool:
        return True

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        at = engine.open()
        if not len(at) or engine.clean.shape[1] < 2:
            return
        near = nearest_classes(engine, at, candidates(engine, at, self.candidates), self.targets)
        at, target, gap, slope = near.at, near.classes, near.gap, near.gradient
        z, last = engine.x[at], torch.full((len(at),), torch.inf, dtype=torch.float64, device=at.device)
        best, image = torch.full_like(engine.distance, torch.inf), engine.x.clone()
        for _ in staged(range(self.steps)):
            x, crossed = engine.x[at], gap < 0
            start = torch.where(per_image(crossed, x), x, z)
            gap_there = torch.where(crossed, gap + ((x - z) * slope).flatten(1).sum(1), gap)
            moved = start + onto_plane(start, gap_there, slope, engine.norm, engine.box)
            longer = 1 + torch.where(crossed, HAIR, OVERSHOOT).to(x.dtype)
            moved = x + (moved - x) * per_image(longer, x)
            moved = moved.clamp(0, 1) if engine.box == "unit" else moved
            away = distances(x, moved, engine.norm)
            still = crossed & ((away - last).abs() < HAIR * away)
            last = torch.where(crossed, away, last)
            y, aims = engine.y[at], target
            told = engine.slope(at, moved, lambda logits, rows, y=y, aims=aims: gap_to(logits, y[rows], aims[rows]))  # type: ignore[misc]
            z, gap, slope = moved, told.value, told.gradient
            _keep(best, image, at, away, z, gap < 0)
            on = engine.standing(at) & ~still & ~(crossed & (away > self.hopeless * best[at]))
            at, target, z, gap, slope, last = (values[on] for values in (at, target, z, gap, slope, last))
            if not len(at):
                break
        self._line(engine, image, best)
        fab = FAB(norm=self.norm, box=self.box, seed=self.seed, steps=self.steps, targets=self.targets, closer=0)
        nearer(engine, fab.rescue(engine))

    def _line(self, engine: Engine, image: Tensor, best: Tensor) -> None:
        """Secant steps to the boundary where no eps is finite and three passes are allowed: an affine margin ends at its zero.

        Else a binary search between each image and its nearest adversarial example: keep the half whose far end is adversarial.
        """
        if self.line >= SECANT and bool(engine.eps.isinf().all()):
            nearer(engine)
            return
        at = engine.open()
        at = at[best[at] < torch.inf]
        x, way = engine.x[at], image[at] - engine.x[at]
        high = torch.ones(len(at), dtype=x.dtype, device=at.device)
        low = high - 0.1
        for _ in range(self.line):
            if not len(at):
                return
            middle = (low + high) / 2
            wrong = engine.judged(at, x + way * per_image(middle, x))[1]
            high, low = torch.where(wrong, middle, high), torch.where(wrong, low, middle)
            on = engine.standing(at)
            at, x, way, high, low = (values[on] for values in (at, x, way, high, low))


def _keep(best: Tensor, image: Tensor, at: Tensor, away: Tensor, z: Tensor, crossed: Tensor) -> None:
    """The nearest crossed point of each image, inside its budget or not; an image may occur several times."""
    better = crossed & (away < best[at])
    lowest = best.scatter_reduce(0, at[better], away[better], "amin")
    first = better & (away == lowest[at])
    best.copy_(lowest)
    image[at[first]] = z[first]
