"""Conformance checks of an attack: near-optimal on affine models, inside ball and box, model and images left unchanged."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks import Attack, Attacked
from robustbench_rkhs.attacks.ball import distances, pull_inside
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.testing.must import left_as_it_was, must
from robustbench_rkhs.testing.oracles import Affine, affine, bent, constant_model

SHAPES = ((1, 4, 4), (3, 8, 8), (20,))


def check_attack(attack: Attack, norm: Norm = "l2", factor: float = 1.05) -> None:
    """All checks of an attack in this norm. `factor`: allowed ratio of its distance to the exact one on an affine model."""
    for seed, shape in enumerate(SHAPES):
        near_the_optimum(attack, norm, factor, affine(3, shape, seed=seed, images=8))
    if attack.scale_invariant:
        for scale in (1e-4, 1e4):
            near_the_optimum(attack, norm, factor, affine(4, (1, 4, 4), scale=scale, seed=3, images=12))
    for attached in (True, False):
        finite_without_a_gradient(attack, norm, attached)
    finite_where_the_model_is_not(attack, norm)
    leaves_the_model(attack, norm)
    takes_no_image_and_wrong_ones(attack, norm)
    if not attack.minimal_norm:
        keeps_its_budget(attack, norm)


TIE = 32 * 2.0**-23
"""Rounding of a difference of two float32 logits, sums of some ten products, relative to the largest."""


def run(attack: Attack, oracle: Affine, model: nn.Module | None = None) -> Attacked:
    """Run the attack on an oracle's images, against its model or `model`."""
    return attack(model or oracle.model, oracle.x, oracle.y, torch.arange(len(oracle.x)))


def broken(oracle: Affine, attacked: Attacked, attack: Attack, model: nn.Module | None = None) -> Tensor:
    """Which images are misclassified after projection into ball and box, as in an evaluation.

    A tie within the rounding of the logits counts: a processor may sum in another order in another batch, and an evaluation asks
    again in any case.
    """
    inside = pull_inside(oracle.x, attacked.images, attack.norm, attack.eps, attack.box)
    with torch.no_grad():
        logits: Tensor = (model or oracle.model)(inside)
    own = oracle.y[:, None]
    others = logits.scatter(1, own, -torch.inf).amax(1)
    return others >= logits.gather(1, own)[:, 0] - TIE * logits.abs().amax(1)


def near_the_optimum(attack: Attack, norm: Norm, factor: float, oracle: Affine) -> None:
    """Distances between the exact one and `factor` times it, inside ball and box, `x` unchanged, passes counted."""
    exact, x = oracle.distance(norm), oracle.x.clone()
    eps = factor * exact.median().item()
    attack = attack.aimed(norm=norm, eps=eps, seed=0)
    attacked = run(attack, oracle)
    images, fell = attacked.images, broken(oracle, attacked, attack)
    must(torch.equal(oracle.x, x), "an attack must leave the images it is given as they are")
    must(images.shape == x.shape and images.dtype == x.dtype, f"expected images like those given, found {tuple(images.shape)}")
    must(images.isfinite().all() and images.min() >= -1e-6 and images.max() <= 1 + 1e-6, "images must stay in the box [0, 1]")
    found = distances(oracle.x, images, norm)
    if attack.minimal_norm:
        must(fell.all(), f"a minimal-norm attack must break every image here, missed {int((~fell).sum())} of {len(fell)}")
        must((found / exact).max() <= factor, f"expected at most {factor:g} of the exact distance everywhere")
        must((found / exact).min() >= 1 - 1e-4, "nothing can be broken below the exact distance: check the dtype of the images")
    else:
        must(found.max() <= eps + 1e-6, f"images must stay in the ball of radius {eps:.4g}, found one at {found.max():.4g}")
        near = exact <= eps / factor
        must(fell[near].all(), f"expected every image nearer than eps / {factor:g} broken, missed {int((~fell[near]).sum())}")
        must(not fell[exact > eps * (1 + 1e-4)].any(), "nothing can be broken below the exact distance")
    must((attacked.forwards > 0).all(), "every image costs at least one forward pass: count them")


def finite_without_a_gradient(attack: Attack, norm: Norm, attached: bool = True) -> None:
    """On a model with zero gradient (or, if not `attached`, none) the images are finite and nothing is broken."""
    x = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    oracle = Affine(constant_model(4, answer=1, attached=attached), x, torch.ones(3, dtype=torch.int64), x, x)
    aimed = attack.aimed(norm=norm, eps=0.5, seed=0)
    attacked = run(aimed, oracle)
    must(attacked.images.isfinite().all(), "images must be finite where the gradient is zero")
    must(not broken(oracle, attacked, aimed).any(), "a model with constant predictions cannot be broken")


class Sick(nn.Module):
    """A model that is right on the clean images and NaN elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        good = torch.stack([x.flatten(1).sum(1) * 0 + 1, -x.flatten(1).sum(1)], 1)
        return torch.where(((x - 0.5).flatten(1).abs().amax(1) < 1e-3)[:, None], good, good * torch.nan)


def finite_where_the_model_is_not(attack: Attack, norm: Norm) -> None:
    """The images are finite on a model that returns NaN away from the clean images."""
    x = torch.full((2, 1, 5, 5), 0.5)
    attacked = attack.aimed(norm=norm, eps=0.5, seed=0)(Sick(), x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    must(attacked.images.isfinite().all(), "images must be finite where the model's logits are not")


def leaves_the_model(attack: Attack, norm: Norm, in_eval_mode: bool = True) -> None:
    """Modes, weights, buffers, `requires_grad` and gradients are unchanged, also in unusual states."""
    model: Any = bent(classes=3).train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    if in_eval_mode:
        model.eval()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = copy.deepcopy(model).eval()(x).argmax(1)
    with left_as_it_was(model, "an attack"):
        attack.aimed(norm=norm, eps=0.05, seed=0)(model, x, y, torch.arange(3))


def takes_no_image_and_wrong_ones(attack: Attack, norm: Norm, wrong_stay: bool = True) -> None:
    """An empty batch returns an empty batch; misclassified images are returned unchanged (if `wrong_stay`)."""
    oracle, aimed = affine(3, (1, 4, 4), images=4), attack.aimed(norm=norm, eps=0.01, seed=0)
    nothing = aimed(oracle.model, oracle.x[:0], oracle.y[:0], torch.arange(0))
    must(nothing.images.shape == (0, 1, 4, 4), f"expected no image of a block without any, found {tuple(nothing.images.shape)}")
    must(nothing.forwards.shape == nothing.backwards.shape == (0,), "expected no count of a block without images")
    attacked = aimed(oracle.model, oracle.x, (oracle.y + 1) % 3, torch.arange(4))
    must(not wrong_stay or torch.equal(attacked.images, oracle.x), "images that are wrong already must come back as they are")


def keeps_its_budget(attack: Attack, norm: Norm) -> None:
    """eps 0 leaves images unchanged; a missing or negative eps is refused (`Attack.budget` does that)."""
    oracle = affine(3, (1, 4, 4), images=4)
    must(torch.equal(run(attack.aimed(norm=norm, eps=0.0, seed=0), oracle).images, oracle.x), "eps 0 must leave images as they are")
    for eps, said in ((None, "needs an eps"), (-1.0, "must not be negative")):
        try:
            run(attack.model_copy(update={"eps": eps, "norm": norm}), oracle)
        except UserError as refusal:
            must(said in str(refusal), f"expected a refusal that says {said!r}, found {str(refusal)!r}")
        else:
            raise AssertionError(f"eps {eps} must be refused: take the budget from self.budget()")
