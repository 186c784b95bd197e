"""Random starts for minimal-norm attacks: anywhere in the box where nothing was found, and inside the distance found so far."""

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.ball import per_image
from robustbench_rkhs.attacks.engine import Engine

STEPS = 20
"""Gradient steps from each random start in the whole box."""
BEYOND = 10.0
"""Without a box: how many times the range of the pixels is searched."""
SHORT = 5
"""Gradient steps from each random start inside the distance found so far."""
CLOSER = 0.97
"""The radius of that search, as a share of the distance found so far."""


def found_anywhere(engine: Engine, starts: int) -> Int[Tensor, " some"]:
    """The images without a finite eps that nothing had broken and that a random start in the whole box breaks.

    Each start is a random point at the far side of the box, from which Auto-PGD lowers the margin: at the image itself the gradient
    may be zero. The example is far away: it is where a search for the boundary begins. Cost: at most 21 passes per start, each way,
    of the images that nothing had broken.
    """
    missed = engine.right & ~engine.broken & engine.eps.isinf()
    size = 1.0 if engine.norm == "linf" else engine.x[:1].numel() ** 0.5
    if engine.box == "none" and engine.x.numel():
        size *= BEYOND * float(engine.x.amax() - engine.x.amin() + 1)
    return _found_within(engine, missed, torch.full_like(engine.eps, size * (1 + 1e-5)), starts, STEPS)


def found_closer(engine: Engine, starts: int) -> Int[Tensor, " some"]:
    """The images without a finite eps of which a random start finds an adversarial example nearer than the known one.

    Each start is a random point at CLOSER times the known distance, from which Auto-PGD lowers the margin inside that ball: descent
    from the image alone ends at the same local minimum every time. Cost: at most 6 forward and 5 backward passes per start.
    """
    known = engine.right & engine.broken & engine.eps.isinf()
    return _found_within(engine, known, CLOSER * engine.distance, starts, SHORT)


def _found_within(
    engine: Engine, chosen: Bool[Tensor, " batch"], eps: Float64[Tensor, " batch"], starts: int, steps: int
) -> Int[Tensor, " some"]:
    """Those of the chosen images that random starts break within this eps; whatever they find, the engine keeps if it is nearer."""
    if not starts or not chosen.any() or engine.clean.shape[1] < 2:
        return chosen.nonzero().flatten()[:0]
    before = engine.right, engine.eps, engine.distance, engine.images
    engine.right, engine.eps = chosen, torch.where(chosen, eps, 0)
    engine.distance, engine.images = torch.where(chosen, torch.inf, engine.distance), engine.images.clone()
    try:
        APGD(loss="margin", steps=steps, restarts=starts, norm=engine.norm, box=engine.box, seed=engine.seed).search(engine)
    finally:
        nearer = engine.distance < before[2]
        engine.distance = torch.where(nearer, engine.distance, before[2])
        engine.images = torch.where(per_image(nearer, engine.images), engine.images, before[3])
        engine.right, engine.eps = before[:2]
    return (chosen & nearer).nonzero().flatten()
