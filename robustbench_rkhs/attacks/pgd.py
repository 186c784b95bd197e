"""Projected gradient descent on a scale-invariant objective, with restarts; and the attack that gave a published result."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import fading, per_image, project, random_offset, steepest
from robustbench_rkhs.attacks.base import Attack
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.objective import Objective, gap, objective
from robustbench_rkhs.attacks.passes import Value
from robustbench_rkhs.attacks.training_engine import TrainingEngine
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Box
from robustbench_rkhs.runtime.heartbeat import staged


class PGD(EngineAttack):
    r"""Steepest descent on the margin in an l2 or linf ball, keeping each image's best iterate.

    .. math:: x' \leftarrow \Pi_{B_\varepsilon(x) \cap [0,1]^d} \big( x' - s_t\, d(\nabla_{x'} m(x')) \big), \qquad
              m = f_y - \max_{j \ne y} f_j

    d is the gradient at length one (l2; zero stays zero) or its sign (linf). The step length falls linearly from `step_size`
    to a twentieth of it. The first start is x itself, every further restart a random point of the ball; a broken image
    is left out of later steps.
    Then `targets` runs towards the nearest other classes, from x, on the unbroken images.
    Cost: at most (restarts + targets) (steps + 1) + 2 forward and (restarts + targets) steps + K backward passes per image
    (K classes), and one forward pass for an image that is misclassified already. No weight gradients.
    Source: Madry et al., ICLR 2018; normalised l2 steps as in Rony et al., CVPR 2019.
    """

    name: Literal["pgd"] = "pgd"
    steps: int = Field(40, ge=1)
    """Gradient steps of each restart."""
    step_size: Real | None = Field(None, gt=0)
    """Length of the first step, in the norm's unit; default: 2.5 eps / steps, at least eps / 4."""
    decay: bool = True
    """Shorten the steps linearly to a twentieth."""
    restarts: int = Field(1, ge=1)
    """Starts: x itself, then random points of the ball."""
    start: Literal["zero", "random"] = "zero"
    """Where the first restart begins."""
    loss: Objective = "margin"
    """`margin` and `dlr` give the same steps at any logit scale; `cross_entropy` can be masked by it."""
    keep: Literal["best", "last"] = "best"
    """`best`: return the iterate of lowest margin; `last`: return the last iterate."""
    targets: int = Field(1, ge=0)
    """Runs towards one class each, nearest by linearisation first, on the unbroken images (only with a scale-invariant loss and
    `keep: best`): the untargeted margin has local minima even on an affine model."""

    @property
    def scale_invariant(self) -> bool:
        return self.loss != "cross_entropy"

    @torch.no_grad()
    def search(self, engine: Engine | TrainingEngine) -> None:
        """All restarts, then all targets, on the unbroken images."""
        aims = self.targets if self.scale_invariant and self.keep == "best" else 0
        for restart in staged(range(self.restarts), share=self.restarts / (self.restarts + aims)):
            if not len(at := engine.open()):
                return
            moved = self.start == "random" or restart > 0
            self._descend(engine, at, self._random_start(engine, at, restart) if moved else engine.x[at])
        at = engine.open()
        if not (aims and len(at)):
            return
        for target in staged(engine.nearest(at, aims).unbind(1)):
            on = engine.standing(at)
            if not on.any():
                return
            self._descend(engine, at[on], engine.x[at[on]], target[on])

    @torch.no_grad()
    def perturbed(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch *image"]:
        """The images to train on: the iterates of lowest margin (or the last ones), with the model in its current mode.

        The same search, without what only an evaluation needs: no pass is counted, no image is queried again.
        """
        if (eps := self.budget()) == 0:
            return x
        unseen = self.keep == "last" and self.restarts == 1
        engine = TrainingEngine(model, x, y, keys, norm=self.norm, box=self.box, eps=eps, seed=self.seed, unseen=unseen)
        self.search(engine)
        return engine.images

    def again(self, number: int) -> Attack:
        """With a random start, as the run from the image itself uses no random numbers."""
        return super().again(number).model_copy(update={"start": "random"})

    def _descend(
        self,
        engine: Engine | TrainingEngine,
        at: Int[Tensor, " some"],
        images: Float[Tensor, "some *image"],
        target: Int[Tensor, " some"] | None = None,
    ) -> None:
        """One run, towards `target` if given. Broken images leave the batch (with `keep: best`)."""
        best, x, eps = self.keep == "best", engine.x[at], engine.eps[at]
        first = (2.5 * eps / self.steps).clamp_min(eps / 4) if self.step_size is None else torch.full_like(eps, self.step_size)
        lowered = self._lowered(engine.y[at], target)
        for step in staged(range(self.steps)):
            found = engine.slope(at, images, lowered, keep=best)
            gradient = found.gradient
            if best:
                engine.pull(at, images, found.wrong)
                on = engine.standing(at)
                if not on.all():
                    at, x, images, gradient, first, eps = (values[on] for values in (at, x, images, gradient, first, eps))
                    if not len(at):
                        return
                    target = None if target is None else target[on]
                    lowered = self._lowered(engine.y[at], target)
            length = first * fading(step, self.steps) if self.decay else first
            moved = images - per_image(length.to(x.dtype), x) * self._direction(gradient)
            images = project(x, moved, engine.norm, eps, engine.box)
        engine.judge(at, images)

    def _lowered(self, y: Int[Tensor, " some"], target: Int[Tensor, " some"] | None) -> Value:
        if target is None:
            return lambda logits, rows: objective(self.loss, logits, y[rows])
        return lambda logits, rows: gap(logits, y[rows], target[rows])

    def _direction(self, gradient: Tensor) -> Tensor:
        return steepest(gradient, self.norm)

    def _random_start(self, engine: Engine | TrainingEngine, at: Int[Tensor, " some"], restart: int) -> Tensor:
        """A random point of the ball, seeded by restart."""
        x, eps = engine.x[at], engine.eps[at]
        offset = random_offset(engine.keys.to(at.device)[at], engine.seed, x, engine.norm, restart)
        return project(x, x + offset * per_image(eps.to(x.dtype), x), engine.norm, eps, engine.box)


class PublishedPGD(PGD):
    r"""The attack behind the published 47.04% at eps 1, kept to reproduce that number and to refute it.

    100 steps of 0.5 along g / max(||g||_2, floor), g the gradient of the cross-entropy averaged over batches of 256, from a
    zero start, no box, last iterate. Confident images have gradients below the floor and are never moved: the evaluation marks
    such a result as masked.
    Cost: 102 forward and 100 backward passes. Source: the evaluation script of Bietti et al., ICML 2019.
    """

    name: Literal["published"] = "published"  # type: ignore[assignment]
    steps: int = Field(100, ge=1)
    step_size: Real | None = Field(0.5, gt=0)
    decay: bool = False
    loss: Objective = "cross_entropy"
    keep: Literal["best", "last"] = "last"
    targets: int = Field(0, ge=0)
    box: Box = "none"
    gradient_floor: Real = Field(256e-7, gt=0)
    """Smallest length that a gradient is divided by: 1e-7 for the mean over 256 images, so 256e-7 for the gradient of one image."""

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        length = gradient.flatten(1).norm(dim=1).clamp_min(self.gradient_floor)
        return gradient / per_image(length, gradient)
