"""FAB: the nearest adversarial image, by projections on linearised decision boundaries."""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import per_image, random_offset
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.hyperplane import distance_to_plane, offsets
from robustbench_rkhs.attacks.line_search import nearer
from robustbench_rkhs.attacks.objective import gap
from robustbench_rkhs.attacks.rescue import found_anywhere, found_closer
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.runtime.heartbeat import staged


class _Plane(NamedTuple):
    """The linearised decision boundary f_y = f_k: f(z) = value + <normal, z - place>, which is 0 on it."""

    wrong: Bool[Tensor, " rows"]
    """Whether the model was wrong at the last iterate, before it was pulled back."""
    value: Float[Tensor, " rows"]
    normal: Float[Tensor, "rows *image"]

    def rows(self, chosen: Tensor) -> "_Plane":
        return _Plane(*(part[chosen] for part in self))

    def put(self, where: Tensor, other: "_Plane") -> "_Plane":
        return _Plane(*(part.index_copy(0, where, new) for part, new in zip(self, other, strict=True)))


class FAB(EngineAttack):
    r"""Fast adaptive boundary attack: projections onto the linearised boundary from iterate and image, then a step back.

    .. math:: x' \leftarrow \Pi_{[0,1]^d}\big((1 - \alpha)(x' + \eta\,\delta) + \alpha\,(x + \eta\,\delta_x)\big), \qquad
              \alpha = \min\Big(\tfrac{\lVert\delta\rVert}{\lVert\delta\rVert + \lVert\delta_x\rVert}, \alpha_{\max}\Big)

    delta and delta_x take x' and x onto the plane f_y = f_k linearised near x', inside the box, by the shortest way; k is the
    nearest class by that linearisation, or the target. An adversarial x' is pulled back: x' <- (1 - beta) x + beta x'.
    The distance is minimised. With a finite eps per image (inside an ensemble), an image leaves the batch once it is broken within
    eps. A run whose gradient is zero while the model is right cannot move, and leaves too. Without a finite eps, two secant steps
    of the margin follow on the line from the image to its nearest adversarial example.
    An image that nothing broke gets random starts in the whole box (`rescues`), and a run from what they find; then each image
    gets random starts inside the distance found so far (`closer`), and a run from what is nearer.
    Cost per image: steps + 5 forward and steps K backward passes (K classes; steps with two), times restarts; targeted:
    n (steps + 1) + 4 forward and n steps backward passes; 6 forward and 5 backward passes per `closer` start. The pass that checks
    an iterate also linearises it; `relook` linearises again at the point pulled back, as published: up to twice the forward passes.
    Raises UserError for images outside [0, 1] with box `unit`.
    Source: Croce & Hein, ICML 2020 (arXiv:1907.02044).
    """

    minimal_norm: ClassVar[bool] = True

    name: Literal["fab"] = "fab"
    steps: int = Field(100, ge=1)
    """Steps of each run."""
    targets: int = Field(0, ge=0)
    """0: towards the nearest boundary by the gradients of all logits; n: one run towards each of the n other classes
    that are nearest by linearisation at the image."""
    restarts: int = Field(1, ge=1)
    """Starts: the image itself, then random points at half the known distance."""
    parallel: int = Field(9, ge=1)
    """Targets of one image that run side by side: a small network gets larger batches (2 to 6 times less time at 8 to 60
    images), but a broken image has used passes for all of them (up to an eighth more passes where most images break)."""
    relook: bool = False
    """Linearise again at the point pulled back, as published. False: reuse the linearisation at the adversarial iterate, which lies
    nearer to the boundary: the distances are no larger, at two thirds of the passes."""
    alpha_max: Real = Field(0.1, ge=0, le=1)
    """Largest weight of the projection from the image in a step."""
    overshoot: Real = Field(1.05, ge=1)
    """eta: how far past the linearised boundary a step goes."""
    beta: Real = Field(0.9, gt=0, le=1)
    """Share of its offset that an adversarial iterate keeps."""
    rescues: int = Field(4, ge=0)
    """Random starts in the whole box, and a run from what they find, for images that nothing broke (only without a finite eps):
    where ReLUs are dead, no gradient leads away from the image."""
    closer: int = Field(8, ge=0)
    """Random starts inside the distance found so far, of a few gradient steps each (only without a finite eps): descent from the
    image alone ends at one local minimum."""

    @property
    def scale_invariant(self) -> bool:
        return True

    @property
    def label(self) -> str:
        return f"{self.name}:targeted" if self.targets else self.name

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        classes = engine.clean.shape[1]
        if classes < 2:
            return
        count = self.targets or int(classes == 2)  # with two classes there is one other class, and one gradient is enough
        at = engine.open()
        aimed = engine.nearest(at, count)
        order = aimed.new_zeros(len(engine.x), aimed.shape[1]).index_copy(0, at, aimed)
        for restart in staged(range(self.restarts)):
            for aims in staged(order.split(self.parallel, 1) if count else [None]):
                at = engine.open()
                if len(at) == 0:
                    return
                start = self._start(engine, at, restart)
                several = 1 if aims is None else aims.shape[1]
                rows = (4 * self.batch_size + several - 1) // several  # bounds the memory; changes no outcome
                for part, first in staged(list(zip(at.split(rows), start.split(rows), strict=True))):
                    target = None if aims is None else aims[part].flatten()
                    self._run(engine, part.repeat_interleave(several), first.repeat_interleave(several, 0), target)
        self.rescue(engine)
        nearer(engine)

    def rescue(self, engine: Engine) -> Tensor:
        """A run from an adversarial example anywhere in the box, for images that have none yet; then from any that is nearer.

        Returns the images that got one of these runs.
        """
        runs = []
        for find, starts in ((found_anywhere, self.rescues), (found_closer, self.closer)):
            runs.append(find(engine, starts))
            self._from(engine, runs[-1])
        found: Tensor = torch.cat(runs).unique()
        return found

    def _from(self, engine: Engine, found: Tensor) -> None:
        """A run of each of these images from its nearest adversarial example."""
        for at in found.split(self.batch_size):
            if len(at) == 0:
                return  # x.view(len(x), -1) takes no empty batch
            images = engine.images[at]
            target = engine.logits(at, images).scatter(1, engine.y[at][:, None], -torch.inf).argmax(1) if self.targets else None
            self._run(engine, at, images, target)

    def _start(self, engine: Engine, at: Tensor, restart: int) -> Tensor:
        """The image; for every further restart a random point at half the nearest known distance, eps, or size of the box."""
        x = engine.x[at]
        if restart == 0:
            return x
        far = torch.minimum(engine.distance, engine.eps)[at].to(x.dtype)
        size = 1.0 if self.norm == "linf" else x[0].numel() ** 0.5
        way = random_offset(engine.keys[at], engine.seed, x, self.norm, restart, surface=True)
        start = x + way * per_image(torch.where(far.isfinite(), far, 0.1 * size) / 2, x)
        return start.clamp(0, 1) if self.box == "unit" else start

    def _run(self, engine: Engine, at: Tensor, points: Tensor, target: Tensor | None) -> None:
        """One run of all rows; a row leaves once its image is broken within a finite eps, or if its gradient is zero."""
        plane = self._look(engine, at, points, target)
        for step in staged(range(self.steps)):
            stays = engine.standing(at) & (plane.wrong | plane.normal.flatten(1).any(1))
            if not stays.all():
                at, points, plane = at[stays], points[stays], plane.rows(stays)
                target = None if target is None else target[stays]
            if len(at) == 0:
                return
            moved = self._step(engine.x[at], points, plane)
            if step == self.steps - 1:
                engine.logits(at, moved)
            elif self.relook:
                points, plane = self._twice(engine, at, moved, target, plane.wrong)
            else:
                plane = self._look(engine, at, moved, target)
                points = self._drawn_back(engine.x[at], moved, plane.wrong)
                plane = plane._replace(value=plane.value + (plane.normal * (points - moved)).flatten(1).sum(1))

    def _twice(self, engine: Engine, at: Tensor, moved: Tensor, target: Tensor | None, expected: Tensor) -> tuple[Tensor, _Plane]:
        """Pull back, then linearise: rows expected to be wrong need only the logits here, as their gradient is taken elsewhere."""
        sure, unsure = expected.nonzero().flatten(), (~expected).nonzero().flatten()
        wrong, plane = torch.zeros_like(expected), _Plane(expected, moved.new_zeros(len(at)), torch.zeros_like(moved))
        if len(sure):
            wrong[sure] = engine.judged(at[sure], moved[sure])[1]
        if len(unsure):
            plane = plane.put(unsure, self._look(engine, at[unsure], moved[unsure], None if target is None else target[unsure]))
            wrong[unsure] = plane.wrong[unsure]
        points = self._drawn_back(engine.x[at], moved, wrong)
        again = (engine.standing(at) & (expected | wrong)).nonzero().flatten()
        if len(again):
            plane = plane.put(again, self._look(engine, at[again], points[again], None if target is None else target[again]))
        return points, plane._replace(wrong=wrong)

    def _drawn_back(self, x: Tensor, moved: Tensor, wrong: Tensor) -> Tensor:
        share = per_image(torch.where(wrong, self.beta, 1.0).to(x.dtype), x)
        return torch.where(share < 1, x + share * (moved - x), moved)

    def _step(self, x: Tensor, points: Tensor, plane: _Plane) -> Tensor:
        """Both projections in one batch, their convex combination, clipped to the box."""
        both, normal = torch.stack([points.flatten(1), x.flatten(1)], 1), plane.normal.flatten(1)
        ahead = -plane.value
        rise = torch.stack([ahead, ahead + (normal * (both[:, 0] - both[:, 1])).sum(1)], 1)
        offset = offsets(both, normal, rise, self.norm, self.box)
        length = offset.norm(dim=2, keepdim=True) if self.norm == "l2" else offset.abs().amax(2, keepdim=True)
        alpha = (length[:, 0] / length.sum(1)).nan_to_num(nan=0.0).clamp_max(self.alpha_max)
        ends = both + self.overshoot * offset
        moved = (ends[:, 0] + alpha * (ends[:, 1] - ends[:, 0])).view_as(x)
        return moved.clamp(0, 1) if self.box == "unit" else moved

    def _look(self, engine: Engine, at: Tensor, points: Tensor, target: Tensor | None) -> _Plane:
        """Logits at these points and the boundary linearised there: one gradient with a target, one per class without."""
        y = engine.y[at]
        if target is not None:
            seen = engine.slope(at, points, lambda logits, rows: gap(logits, y[rows], target[rows]))
            return _Plane(seen.wrong, seen.value, seen.gradient)
        parts = [
            self._nearest(engine, *part) for part in zip(at.split(engine.batch_size), points.split(engine.batch_size), strict=True)
        ]
        return _Plane(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _nearest(self, engine: Engine, at: Tensor, points: Tensor) -> _Plane:
        """The boundary nearest by linearisation, of those to all other classes: |f_y - f_k| / ||gradient||_* is smallest."""
        rows, classes = torch.arange(len(at), device=at.device), engine.clean.shape[1]
        others = (engine.y[at][:, None] + torch.arange(1, classes, device=at.device)) % classes
        gaps, normals, wrong = engine.gaps(at, points, others)
        far = distance_to_plane(gaps.flatten(), normals.flatten(0, 1), self.norm).view_as(gaps)
        nearest = far.argmin(1)
        return _Plane(wrong, gaps[rows, nearest], normals[rows, nearest])
