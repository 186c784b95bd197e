"""Plain gradient descent in the engine, the reference for diagnoses."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.ball import fading, per_image, random_offset, steepest
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.objective import gap, likeliest_classes, margin
from robustbench_rkhs.runtime.heartbeat import staged

Lowered = Callable[[Tensor, Tensor], Tensor]
"""(logits, positions of their images) -> one number per row, to be minimised."""


def margins(logits: Float[Tensor, "some classes"], y: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
    """The margin; for a single class its logit."""
    return margin(logits, y) if logits.shape[1] > 1 else logits[:, 0]


def reach(engine: Engine) -> Float[Tensor, " batch"]:
    """Each image's eps, at most the diameter of [0, 1]: the unit of the step length."""
    size = engine.x[0].numel() if len(engine.x) else 1
    return engine.eps.clamp_max(1.0 if engine.norm == "linf" else size**0.5).to(engine.x.dtype)


def step(engine: Engine, at: Tensor, images: Tensor, gradient: Tensor, share: float) -> Tensor:
    """The images moved down the gradient by this share of their eps, and projected."""
    return engine.project(at, images - per_image(reach(engine)[at] * share, images) * steepest(gradient, engine.norm))


@torch.no_grad()
def descend(engine: Engine, at: Int[Tensor, " some"], images: Tensor, lowered: Lowered, steps: int) -> None:
    """Steepest descent from `images`; the step falls linearly from a quarter of eps to an eightieth.

    Cost: `steps` forward and backward passes and a last forward pass; a broken image leaves, and so does one with a zero
    gradient, which would stay at the same point.
    """
    for number in staged(range(steps)):
        keep = engine.standing(at)
        at, images = at[keep], images[keep]
        if not len(at):
            return
        here = at
        slope = engine.slope(at, images, lambda logits, rows, here=here: lowered(logits, here[rows]))  # type: ignore[misc]
        moves = slope.gradient.flatten(1).any(1)
        at, images = at[moves], images[moves]
        images = step(engine, at, images, slope.gradient[moves], 0.25 * fading(number, steps))
    keep = engine.standing(at)
    if keep.any():
        engine.logits(at[keep], images[keep])


def random_start(engine: Engine, at: Int[Tensor, " some"], draw: int) -> Tensor:
    """A random point of the ball."""
    x = engine.x[at]
    offset = random_offset(engine.keys[at], engine.seed, x, engine.norm, draw)
    return engine.project(at, x + offset * per_image(reach(engine)[at], x))


def restarts(engine: Engine, steps: int, count: int, targets: int = 0, first: int = 0) -> None:
    """Runs on the margin, from the image itself (number 0) and from random points; then towards the runner-up classes."""
    others = likeliest_classes(engine.clean, engine.y, targets)
    runs = count + others.shape[1]
    for number in staged(range(first, first + count), share=count / max(runs, 1)):
        at = engine.open()
        if not len(at):
            return
        start = random_start(engine, at, number) if number else engine.x[at]
        descend(engine, at, start, lambda logits, where: margins(logits, engine.y[where]), steps)
    for target in staged(others.unbind(1)):
        at = engine.open()
        if not len(at):
            return

        def lowered(logits: Tensor, where: Tensor, target: Tensor = target) -> Tensor:
            return gap(logits, engine.y[where], target[where])

        descend(engine, at, engine.x[at], lowered, steps)
