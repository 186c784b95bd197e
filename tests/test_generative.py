"""The generative benchmark: its Frechet distance, its critics' penalties, and a training that goes on where it was stopped."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.parsing import parse

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def generative(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import generative

    return generative


def digits(count=100):
    x = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return Split("noise", "train", x, torch.zeros(count).long(), torch.arange(count), 10, "none")


def test_the_frechet_distance_is_that_of_two_gaussians(generative):
    """With covariances C and s^2 C it is |m - n|^2 + (1 - s)^2 tr C."""
    features = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) @ torch.rand(6, 6).double()
    shift, trace = torch.arange(6).double(), torch.cov(features.T).trace()
    moved = features.mean(0) + 3 * (features - features.mean(0)) + shift
    assert generative.frechet(features, features) == pytest.approx(0, abs=1e-9)
    assert generative.frechet(features, moved) == pytest.approx(float(shift.square().sum() + 4 * trace))


def test_the_penalties_of_the_package_hold_a_critic(generative):
    """Of f(x) = w x + b: lambda |w|^2 by the gradient and (at eps 1) by perturbation, sigma^2 = |w|^2 by the spectral norm."""
    recipe = parse(generative.Generative, yaml.safe_load(generative.RECIPE.read_text()), "recipe")
    model, split = nn.Sequential(nn.Flatten(), nn.Linear(784, 1)), digits()
    square, chance = model[1].weight.square().sum(), torch.Generator().manual_seed(0)
    real, fake = split.x[:20], split.x[20:40]
    plain = recipe.critics["none"](model, real, fake, chance, [])
    for name, weight in (("gradient", 1.0), ("perturbation", 1.0), ("spectral_norm", 0.02)):
        critic = recipe.critics[name]
        penalties = [penalty.prepare(model, split, 0) for penalty in critic.penalties]
        torch.testing.assert_close(critic(model, real, fake, chance, penalties), plain + weight * square, rtol=1e-4, atol=1e-5)
    linear = model(fake).mean() - model(real).mean() + 10 * (square.sqrt() - 1).square()
    torch.testing.assert_close(recipe.critics["wgan_gp"](model, real, fake, chance, []), linear)


def test_a_stopped_training_goes_on_to_the_same_generator(generative, tmp_path):
    recipe = parse(generative.Generative, yaml.safe_load(generative.RECIPE.read_text()), "recipe")
    critic, split = recipe.critics["gradient+spectral"], digits()
    whole, _ = generative.trained(critic, split, 3, 6, tmp_path / "whole.pt")
    generative.trained(critic, split, 3, 4, tmp_path / "parts.pt")
    parts, _ = generative.trained(critic, split, 3, 6, tmp_path / "parts.pt")
    assert all(torch.equal(one, parts.state_dict()[name]) for name, one in whole.state_dict().items())
