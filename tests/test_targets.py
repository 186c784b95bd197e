"""Targets among many classes: where rows differ in length, the nearest boundary is not that of the likeliest class."""

import pytest
import torch
from torch import nn

from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.ensemble import Ensemble
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.testing.oracles import Affine


def uneven(classes, seed, images=30):
    """A linear model of 64 features whose rows have log-normal lengths; the box does not bind."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 64, generator=generator)
    weight *= torch.randn(classes, 1, generator=generator).exp() / weight.norm(dim=1, keepdim=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(-weight @ torch.full((64,), 0.5) + 0.01 * torch.randn(classes, generator=generator))
        x = 0.5 + 0.2 * (torch.rand(images, 1, 8, 8, generator=generator) - 0.5)
        logits = nn.functional.linear(x.flatten(1).double(), model[1].weight.double(), model[1].bias.double())
    y = logits.argmax(1)
    gaps, apart = logits.gather(1, y[:, None]) - logits, weight.double()[y][:, None] - weight.double()[None]
    far = [(gaps / apart.norm(p, dim=2)).scatter(1, y[:, None], torch.inf).amin(1) for p in (2, 1)]
    return Affine(model, x, y, *far)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [10, 20, 50, 100, 200, 300])
def test_targeted_attacks_miss_no_image_a_little_beyond_its_exact_radius(classes, norm):
    oracle, keys = uneven(classes, seed=classes), torch.arange(30)
    for attack in (APGD(loss="targeted", steps=25), FAB(targets=3, steps=15)):
        attacked = attack.aimed(norm=norm, eps=None, seed=0)(oracle.model, oracle.x, oracle.y, keys, 1.02 * oracle.distance(norm))
        assert (oracle.model(attacked.images).argmax(1) != oracle.y).all()


def test_the_parts_of_an_ensemble_share_one_jacobian():
    oracle, keys = uneven(30, seed=1, images=4), torch.arange(4)
    parts = (APGD(loss="targeted", steps=2, targets=3), FAB(targets=3, steps=2))
    both, one, other = (
        Ensemble(version="custom", attacks=some, eps=1e-4)(oracle.model, oracle.x, oracle.y, keys).backwards
        for some in (parts, parts[:1], parts[1:])
    )
    assert (both == one + other - 29).all()


def test_more_than_two_hundred_classes_cost_fifty_gradients_and_an_untargeted_run():
    oracle, keys = uneven(220, seed=2, images=3), torch.arange(3)
    found = APGD(loss="targeted", steps=2, targets=3, eps=1e-4)(oracle.model, oracle.x, oracle.y, keys)
    assert (found.backwards == 50 + (3 + 1) * 2).all()
