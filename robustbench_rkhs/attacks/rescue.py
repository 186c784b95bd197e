"""Adversarial examples anywhere in the box, for images that a minimal-norm attack could not break."""

import torch
from jaxtyping import Int
from torch import Tensor

from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.engine import Engine

STEPS = 20
"""Gradient steps from each random start."""
BEYOND = 10.0
"""Without a box: how many times the range of the pixels is searched."""


def found_anywhere(engine: Engine, starts: int) -> Int[Tensor, " some"]:
    """The images without a finite eps that nothing had broken and that a random start in the whole box breaks.

    Each start is a random point at the far side of the box, from which Auto-PGD lowers the margin: at the image itself the gradient
    may be zero. The example is far away: it is where a search for the boundary begins. Cost: at most 21 passes per start, each way,
    of the images that nothing had broken.
    """
    missed = engine.right & ~engine.broken & engine.eps.isinf()
    if not starts or not missed.any() or engine.clean.shape[1] < 2:
        return missed.nonzero().flatten()[:0]
    size = 1.0 if engine.norm == "linf" else engine.x[:1].numel() ** 0.5
    far = size if engine.box == "unit" else BEYOND * size * float(engine.x.amax() - engine.x.amin() + 1)
    right, eps = engine.right, engine.eps
    engine.right, engine.eps = right & missed, torch.full_like(eps, far * (1 + 1e-5))
    try:
        APGD(loss="margin", steps=STEPS, restarts=starts, norm=engine.norm, box=engine.box, seed=engine.seed).search(engine)
    finally:
        engine.right, engine.eps = right, eps
    return (missed & engine.broken).nonzero().flatten()
