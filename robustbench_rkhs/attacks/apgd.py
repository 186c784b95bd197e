"""Auto-PGD: gradient steps with an automatic step size, on losses that do not depend on the scale of the logits."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import per_image, random_offset, steepest
from robustbench_rkhs.attacks.engine import MANY, Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.objective import dlr, gap, margin, objective, targeted_dlr
from robustbench_rkhs.attacks.passes import Value
from robustbench_rkhs.nodes.node import Real, UserError
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.runtime.heartbeat import staged

Loss = Literal["cross_entropy", "dlr", "margin", "targeted"]
"""The loss of a run; `targeted` is the targeted DLR loss, with one run towards each of several classes."""
MOMENTUM = 0.75
"""Weight of the new step in each move; the rest repeats the last move."""
TILT = 1e-4
"""Multiple of the margin (10 on the clean image) that is added to DLR losses, which are flat where their denominator ties."""


class Rows(NamedTuple):
    """The state of the runs: current point, best point, and what determines the step length."""

    at: Int[Tensor, " rows"]
    target: Int[Tensor, " rows"]
    images: Float[Tensor, "rows *image"]
    previous: Float[Tensor, "rows *image"]
    gradient: Float[Tensor, "rows *image"]
    value: Float[Tensor, " rows"]
    best: Float[Tensor, "rows *image"]
    best_gradient: Float[Tensor, "rows *image"]
    best_value: Float[Tensor, " rows"]
    marked_value: Float[Tensor, " rows"]  # best_value at the last checkpoint
    halved: Bool[Tensor, " rows"]  # whether the step changed at the last checkpoint
    improved: Int[Tensor, " rows"]  # steps since then that lowered the value
    step: Float[Tensor, " rows"]

    def kept(self, standing: Bool[Tensor, " rows"]) -> "Rows":
        """Only the rows that are still robust."""
        return Rows(*(column[standing] for column in self))


class APGD(EngineAttack):
    r"""Auto-PGD: momentum steps in an l2 or linf ball; the step is halved where progress stalls, at the best point so far.

    .. math:: z = \Pi\big(x_k - \eta\, d(\nabla \ell(x_k))\big), \qquad
              x_{k+1} = \Pi\big(x_k + \tfrac34 (z - x_k) + \tfrac14 (x_k - x_{k-1})\big), \qquad \eta_0 = 2 \varepsilon

    d is the gradient at length one (l2; zero stays zero) or its sign (linf). At the checkpoints :math:`\lceil p_j n \rceil`,
    :math:`p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03, 0.06)`, :math:`p_0 = 0, p_1 = 0.22`, a run halves its step and goes back to
    its best point where fewer than `rho` of the steps since the last one lowered the loss, or neither step nor best loss changed.
    Starts are random on the sphere. A broken image leaves at once, with all its runs.

    Losses: cross-entropy; margin :math:`f_y - \max_{j \ne y} f_j`; DLR, the margin over :math:`f_{(1)} - f_{(3)}`; targeted DLR,
    :math:`(f_y - f_t) / (f_{(1)} - (f_{(3)} + f_{(4)}) / 2)`. All use logits scaled by a constant per image that puts its clean
    margin at 10. A DLR loss is flat where the second logit equals the third, so 1e-4 times its numerator is added. With fewer than
    four classes the denominators degenerate, and the constant alone replaces them.
    Cost per unbroken image: steps + 1 forward and steps backward passes per run, and 1 forward pass; runs = restarts, times
    min(targets, classes - 1) for `targeted`. Raises UserError for a missing, negative or infinite eps.
    Source: Croce & Hein, ICML 2020.
    """

    name: Literal["apgd"] = "apgd"
    steps: int = Field(100, ge=1)
    """Gradient steps of each run."""
    loss: Loss = "cross_entropy"
    """The loss that is minimised."""
    rescale: bool = True
    """Scale the logits of cross-entropy so that each image's clean margin is 10: no logit scale can mask its gradients. False: the
    logits as they are, the published protocol. The other losses do not depend on the scale."""
    targets: int = Field(9, ge=1)
    """Number of classes that `targeted` runs towards, nearest by linearisation first; at most all but the label. Of more than 200
    classes, the 50 likeliest are looked at, and an untargeted run on the margin follows."""
    skipped: int = Field(0, ge=0)
    """How many of the nearest of these classes are left out, as an earlier run aimed at them."""
    parallel: int = Field(8, ge=1)
    """Targets of an image that run at once, after the first: that one runs alone, as it breaks most of the images that break. A
    robust image costs the same passes."""
    restarts: int = Field(1, ge=1)
    """Runs, each from its own random start; for `targeted`: rounds over all targets."""
    rho: Real = Field(0.75, ge=0, le=1)
    """Share of the steps between two checkpoints that must lower the loss, or the step is halved."""

    @property
    def scale_invariant(self) -> bool:
        return self.rescale or self.loss != "cross_entropy"

    @property
    def label(self) -> str:
        return f"{self.name}:{self.loss}" + (f" from {self.skipped + 1}" if self.skipped else "")

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The checkpoints: numbers of steps after which a run reviews its progress."""
        shares = [0.0, 0.22]
        while shares[-1] < 1:
            shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
        marks = {math.ceil(round(share * self.steps, 6)) for share in shares[1:]}  # rounded: 0.57 * 100 is a little over 57
        return tuple(sorted(mark for mark in marks if mark < self.steps))

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        """One run after another on the images that are still robust."""
        classes = engine.clean.shape[1]
        if engine.eps.isinf().any():
            raise UserError(f"attack {self.label!r} needs a finite eps for every image, found an infinite one")
        if classes < 2:
            return
        ranks, order, at = [0], engine.y[:, None], engine.open()
        if self.loss == "targeted":
            aims = self._aims(engine, at)
            order = aims.new_zeros(len(engine.x), aims.shape[1]).index_copy(0, at, aims)
            ranks = list(range(aims.shape[1]))[self.skipped :]
        if not ranks:
            return
        groups = [ranks[:1], *(ranks[first : first + self.parallel] for first in range(1, len(ranks), self.parallel))]
        for restart in staged(range(self.restarts)):
            for some in staged(groups, weights=[len(group) for group in groups]):
                if not len(standing := engine.open()):
                    return
                for at in staged(standing.split(max(1, self.batch_size // len(some)))):  # at most a batch of rows in memory
                    start = torch.cat([self._start(engine, at, restart, rank) for rank in some])
                    self._run(engine, at.repeat(len(some)), start, order[at][:, some].T.flatten())
        if self.loss == "targeted" and classes > MANY and not self.skipped:  # the nearest class may not be among the likeliest
            self.model_copy(update={"loss": "margin", "restarts": 1}).search(engine)

    def _aims(self, engine: Engine, at: Int[Tensor, " some"]) -> Int[Tensor, "some few"]:
        """The targets of these images, the skipped ones first: the nearest, as an earlier run with fewer targets chose them."""
        every = engine.nearest(at, self.targets)
        if not 0 < self.skipped < every.shape[1]:
            return every
        early = engine.nearest(at, self.skipped)
        others = every[~(every[:, :, None] == early[:, None]).any(2)].view(len(every), every.shape[1] - early.shape[1])
        return torch.cat([early, others], 1)

    def _start(self, engine: Engine, at: Tensor, restart: int, rank: int) -> Tensor:
        """A random point at distance eps, seeded by loss, restart and rank of the target."""
        x = engine.x[at]
        draw = mix(get_args(Loss).index(self.loss), restart, rank)
        way = random_offset(engine.keys[at], engine.seed, x, engine.norm, draw, surface=True)
        return engine.project(at, x + per_image(engine.eps[at].to(x.dtype), x) * way)

    def _run(self, engine: Engine, at: Tensor, start: Tensor, target: Tensor) -> None:
        """Run all these rows from their starts; a row leaves after the pass that breaks its image."""
        step, zero = 2 * engine.eps[at].to(start.dtype), torch.zeros_like(start)
        worst, no = torch.full_like(step, torch.inf), torch.zeros_like(at, dtype=torch.bool)
        rows = Rows(at, target, start, start, zero, worst, start, zero, worst, worst, no, torch.zeros_like(at), step)
        marks, last, lowered = self.checkpoints, 0, self._lowered(engine, at, target)
        for k in staged(range(self.steps)):
            found = engine.slope(rows.at, rows.images, lowered)
            value = found.value.to(start.dtype).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
            lower = value < (rows.value if k else value)
            rows = rows._replace(value=value, gradient=found.gradient, improved=rows.improved + lower)
            if not (standing := engine.standing(rows.at)).all():
                rows = rows.kept(standing)
                if not len(rows.at):
                    return
                lowered = self._lowered(engine, rows.at, rows.target)
            rows = self._remembered(rows)
            if k in marks:
                rows, last = self._looked_back(rows, k - last), k
            rows = self._moved(engine, rows, MOMENTUM if k else 1.0)
        engine.logits(rows.at, rows.images)

    def _remembered(self, rows: Rows) -> Rows:
        better = rows.value < rows.best_value
        wide = per_image(better, rows.images)
        return rows._replace(
            best=torch.where(wide, rows.images, rows.best),
            best_gradient=torch.where(wide, rows.gradient, rows.best_gradient),
            best_value=torch.where(better, rows.value, rows.best_value),
        )

    def _looked_back(self, rows: Rows, steps: int) -> Rows:
        """A checkpoint, `steps` steps after the last one."""
        halved = (rows.improved < self.rho * steps) | (~rows.halved & (rows.best_value == rows.marked_value))
        wide = per_image(halved, rows.images)
        return rows._replace(
            step=torch.where(halved, rows.step / 2, rows.step),
            images=torch.where(wide, rows.best, rows.images),
            gradient=torch.where(wide, rows.best_gradient, rows.gradient),
            value=torch.where(halved, rows.best_value, rows.value),
            marked_value=rows.best_value,
            halved=halved,
            improved=torch.zeros_like(rows.improved),
        )

    def _moved(self, engine: Engine, rows: Rows, share: float) -> Rows:
        way = steepest(rows.gradient, engine.norm) * per_image(rows.step, rows.images)
        moved = engine.project(rows.at, rows.images - way)
        if share < 1:
            mixed = rows.images + share * (moved - rows.images) + (1 - share) * (rows.images - rows.previous)
            moved = engine.project(rows.at, mixed)
        return rows._replace(images=moved, previous=rows.images)

    def _lowered(self, engine: Engine, at: Tensor, target: Tensor) -> Value:
        """The loss of the logits of these rows."""
        y, gain = engine.y[at], engine.gain[at][:, None]

        def value(logits: Tensor, rows: Tensor) -> Tensor:
            scaled, own = logits * gain[rows] if self.scale_invariant else logits, y[rows]
            if self.loss in ("cross_entropy", "margin"):
                return objective(self.loss, scaled, own)
            few, aims = scaled.shape[1] < 4, target[rows]
            if self.loss == "dlr":
                plain = margin(scaled, own)
                return plain if few else dlr(scaled, own) + TILT * plain
            plain = gap(scaled, own, aims)
            return plain if few else targeted_dlr(scaled, own, aims) + TILT * plain

        return value
