"""Descent in the engine that needs nothing but a gradient: what the diagnoses compare."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.ball import draws, per_image, unit
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.objective import margin

Lowered = Callable[[Tensor, Tensor], Tensor]
"""(logits, positions of the images they are of) -> one number a row, to be lowered."""


def margins(logits: Float[Tensor, "some classes"], y: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
    """The margin; of one class alone its logit, as there is nothing to be told apart from."""
    return margin(logits, y) if logits.shape[1] > 1 else logits[:, 0]


def reach(engine: Engine) -> Float[Tensor, " batch"]:
    """Each image's eps, at most the diameter of [0, 1]: the length that steps are a share of."""
    size = engine.x[0].numel() if len(engine.x) else 1
    return engine.eps.clamp_max(1.0 if engine.norm == "linf" else size**0.5).to(engine.x.dtype)


def step(engine: Engine, at: Tensor, images: Tensor, gradient: Tensor, share: float) -> Tensor:
    """The images moved down the gradient by this share of their eps, and projected."""
    direction = unit(gradient) if engine.norm == "l2" else gradient.sign()
    return engine.project(at, images - per_image(reach(engine)[at] * share, images) * direction)


@torch.no_grad()
def descend(engine: Engine, at: Int[Tensor, " some"], images: Tensor, lowered: Lowered, steps: int) -> None:
    """Steepest descent from `images`; the step falls linearly from a quarter of eps to an eightieth.

    Cost: `steps` forward and backward passes and a last forward pass; an image that fell leaves, and one without a gradient, which
    would be asked about the same point again.
    """
    for number in range(steps):
        keep = engine.standing(at)
        at, images = at[keep], images[keep]
        if not len(at):
            return
        here = at
        slope = engine.slope(at, images, lambda logits, rows, here=here: lowered(logits, here[rows]))
        moves = slope.gradient.flatten(1).any(1)
        at, images = at[moves], images[moves]
        images = step(engine, at, images, slope.gradient[moves], 0.25 * (1 - 0.95 * number / steps))
    keep = engine.standing(at)
    if keep.any():
        engine.logits(at[keep], images[keep])


def random_start(engine: Engine, at: Int[Tensor, " some"], draw: int) -> Tensor:
    """A point of the ball: uniform in the cube (linf), a random direction at a random share of eps (l2)."""
    x = engine.x[at]
    noise = draws(engine.keys[at], engine.seed, x, draw)
    if engine.norm == "linf":
        offset = torch.erf(noise / 2**0.5)
    else:
        offset = unit(noise) * per_image(torch.erf(noise.flatten(1)[:, 0].abs() / 2**0.5), x)
    return engine.project(at, x + offset * per_image(reach(engine)[at], x))


def restarts(engine: Engine, steps: int, count: int, targets: int = 0, first: int = 0) -> None:
    """Runs down the margin, from the image itself (number 0) and from random points; then towards the runner-up classes."""
    for number in range(first, first + count):
        at = engine.open()
        if not len(at):
            return
        start = random_start(engine, at, number) if number else engine.x[at]
        descend(engine, at, start, lambda logits, where: margins(logits, engine.y[where]), steps)
    others = engine.clean.nan_to_num().scatter(1, engine.y[:, None], -torch.inf).argsort(1, descending=True)
    for rank in range(min(targets, engine.clean.shape[1] - 1)):
        at, target = engine.open(), others[:, rank]
        if not len(at):
            return

        def gap(logits: Tensor, where: Tensor, target: Tensor = target) -> Tensor:
            own, other = engine.y[where][:, None], target[where][:, None]
            return (logits.gather(1, own) - logits.gather(1, other))[:, 0]

        descend(engine, at, engine.x[at], gap, steps)
