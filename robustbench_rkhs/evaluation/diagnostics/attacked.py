"""Signs of masking from attacks: scale, budget, steps, a twin, queries and random directions compared."""

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_rkhs.attacks.square.attack import Square
from robustbench_rkhs.evaluation.diagnostics.base import Scene
from robustbench_rkhs.evaluation.diagnostics.transfer import transferred
from robustbench_rkhs.evaluation.diagnostics.walk import descend, margins, restarts, step
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.verdicts import Diagnosis

BLACK_BOX = ("square", "hop_skip_jump")
"""Words in the labels of attacks without gradients."""
STANDING = 0.1
"""With the whole box allowed, every correctly classified image has an adversarial one (a picture of another class); on honest
networks none survived; chance among ten classes is 10%."""
RANDOM = 0.25
"""Random directions lower the margin by about 1 / sqrt(pixels) as much as the gradient; on honest networks: no image."""


def logit_scale(scene: Scene) -> Diagnosis:
    """Images that 10 steps on raw cross-entropy do not break but the same on rescaled logits do, if rescaling shrinks them.

    Large logits make cross-entropy's gradient vanish (float32: from a margin of about 100). Small ones, as in 1-Lipschitz networks,
    only blur the class that it moves towards: reported, but not a failure. Threshold: 5% of the right images.
    Cost: at most 44 passes.
    """
    rows = scene.left.nonzero().flatten()
    raw, scaled = scene.engine(rows, through=False), scene.engine(rows, through=False)
    for engine, gain in ((raw, torch.ones_like(raw.gain)), (scaled, scaled.gain)):

        def lowered(logits: Tensor, at: Tensor, gain: Tensor = gain) -> Tensor:
            return -functional.cross_entropy(logits * gain[at][:, None], scene.y[rows[at]], reduction="none")

        descend(engine, engine.open(), engine.x[engine.open()], lowered, 10)
    more = scaled.broken & ~raw.broken
    shrunk = int((more & (scaled.gain < 1)).sum())
    words = f"cross-entropy on rescaled logits breaks {int(more.sum())} of {len(scene.x)} right images that raw logits do not"
    words += f", {shrunk} of them with logits too large"
    return scene.broken_more("logit_scale", shrunk, words, scene.passes(raw, scaled))


def huge_eps(scene: Scene) -> Diagnosis:
    """Correct images that survive when the budget is the whole box: 10 steps in a quarter of it, then 15 in all of it.

    Grey, and a picture of every other class, are inside that ball: any survivor shows that the gradient steps fail. An image
    that an attack of the evaluation broke at any distance is no survivor. Without a box: ten times the range of the pixels.
    Threshold: 10% of the right images. Cost: at most 54 passes.
    """
    far = scene.diameter if scene.box == "unit" else 10 * scene.diameter
    rows, engines = (~scene.ever_broken).nonzero().flatten(), []
    for eps, steps in ((far / 4, 10), (far, 15)):
        engine = scene.engine(rows, eps)
        at = engine.open()
        descend(engine, at, engine.x[at], lambda logits, at, rows=rows: margins(logits, scene.y[rows[at]]), steps)  # type: ignore[misc]
        engines.append(engine)
        rows = rows[~engine.broken]
    standing = torch.zeros(len(scene.x), dtype=torch.bool, device=scene.x.device)
    standing[rows] = True
    words = f"{len(rows)} of {len(scene.x)} right images survive at eps {far:.3g}, a ball that contains every image"
    return scene.share("huge_eps", standing, STANDING, words, scene.passes(*engines))


@torch.no_grad()
def random_direction(scene: Scene) -> Diagnosis:
    """Right images on which a gradient step of eps / 8 lowers the margin by less than half of what a random one changes it.

    Median over 8 random directions (signs for linf). Threshold: 25% of the right images. Cost: 9 forward passes.
    """
    engine = scene.engine()
    if not len(engine.x) or scene.eps <= 0:
        return scene.share("random_direction", torch.zeros(0, dtype=torch.bool), RANDOM, "nothing to compare", 0.0)
    at, before = scene.every, scene.margins
    down = before - margins(engine.logits(at, step(engine, at, engine.x, scene.slopes.nan_to_num(0, 0, 0), 0.125)), scene.y)
    changes = []
    for number in range(8):
        noise = draws(scene.keys, scene.seed, scene.x, 1000 + number)
        changes.append((before - margins(engine.logits(at, step(engine, at, engine.x, noise, 0.125)), scene.y)).abs())
    typical = torch.stack(changes).median(0).values
    worse = ~(down >= 0.5 * typical)
    words = f"on {int(worse.sum())} of {len(worse)} right images a random step changes the margin more than the gradient lowers it"
    return scene.share("random_direction", worse, RANDOM, words, scene.passes(engine))


def single_step(scene: Scene) -> Diagnosis:
    """Images that one gradient step breaks (of eps / 4, / 2 and eps) but 40 steps do not: the later gradients are useless.

    Threshold: 5% of the right images. Cost: at most 4 passes, and 325 of the steps, which later checks share.
    """
    engine = scene.engine(scene.left.nonzero().flatten())
    slopes = scene.slopes[scene.left].nan_to_num(0, 0, 0)
    for share in (0.25, 0.5, 1.0):
        at = engine.open()
        if len(at):
            engine.logits(at, step(engine, at, engine.x[at], slopes[at], share))
    more = int((engine.broken & ~scene.walked.broken).sum())
    words = f"a single step breaks {more} of {len(scene.x)} right images that 40 steps do not"
    return scene.broken_more("single_step", more, words, scene.passes(engine, scene.walked))


def transfer(scene: Scene) -> Diagnosis:
    """Images broken by transfer from an undefended twin (40 steps on its margin, and to three classes), but by no direct attack.

    Threshold: 5% of the right images. Cost: at most 325 passes of the twin and 4 of the model.
    """
    assert scene.twin is not None
    engine = scene.engine(scene.standing)
    if not len(engine.x):
        return scene.broken_more("transfer", 0, "direct attacks left nothing that a twin could break", 0.0)
    transferred(engine, scene.twin)
    more = int(engine.broken.sum())
    words = f"images made on the undefended twin break {more} of {len(scene.x)} right images that direct attacks do not"
    return scene.broken_more("transfer", more, words, scene.passes(engine))


def black_box(scene: Scene) -> Diagnosis:
    """Images that queries break but gradients do not: by the protocol's black-box attacks, and by 300 queries of Square.

    Threshold: 5% of the right images. Cost: at most 301 passes.
    """
    known = torch.zeros(len(scene.x), dtype=torch.bool, device=scene.x.device)
    by_gradient = known.clone()
    for label, distance in scene.found.items():
        queried = any(word in label for word in BLACK_BOX)
        known |= (distance <= scene.eps) & queried
        by_gradient |= (distance <= scene.eps) & (not queried)
    engine = scene.engine(scene.standing)
    Square(norm=scene.norm, box=scene.box, queries=300).search(engine)
    more = int((known & ~by_gradient).sum()) + int(engine.broken.sum())
    words = f"queries without gradients (Square) break {more} of {len(scene.x)} right images that gradient attacks do not"
    return scene.broken_more("black_box", more, words, scene.passes(engine))


def convergence(scene: Scene) -> Diagnosis:
    """Images that twice the steps, a random start and three target classes break, but 40 steps do not.

    Threshold: 5% of the right images. Cost: at most 807 passes.
    """
    engine = scene.engine(scene.standing)
    restarts(engine, steps=80, count=2, targets=3, first=1)
    more = int(engine.broken.sum())
    words = f"twice the steps and four more starts break {more} of {len(scene.x)} right images that the earlier attacks do not"
    return scene.broken_more("convergence", more, words, scene.passes(engine))
