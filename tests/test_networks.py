"""Networks: sizes as published, every family within its bound, whatever the weights; what cannot be built is one line."""

from typing import get_args

import pytest
import torch

from robustbench_rkhs.bounds import pairs, upper
from robustbench_rkhs.layers import Normalize
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.networks import DNN, KWL, LipschitzBounded, LipschitzResNet, LiResNet
from robustbench_rkhs.networks.families import Family
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.training.checkpoint import build, fill
from robustbench_rkhs.training.recipe import TrainRecipe

BOUNDED = [family for family in get_args(Family) if family != "plain"]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "node, shape, classes, millions",
    [
        (KWL(family="plain"), (3, 32, 32), 10, 3.02),
        (KWL(family="aol", width=1), (3, 32, 32), 10, 3.02),
        (KWL(family="orthogonal"), (3, 32, 32), 10, 3.00),
        (KWL(family="sandwich"), (3, 32, 32), 10, 2.98),
        (LipschitzBounded(hidden=(86,) * 9), (1,), 1, 0.13),
        (LipschitzResNet(), (3, 32, 32), 100, 41.4),
        (DNN(), (3, 32, 32), 100, 25.8),
    ],
)
def test_sizes_are_the_published_ones(node, shape, classes, millions):
    """Within 3 %: how a stride is laid out differs a little."""
    assert count(node.build(shape, classes)) / 1e6 == pytest.approx(millions, rel=0.03)


def shaken(model, seed):
    """Every parameter far from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.5
    return model.eval()


@pytest.mark.parametrize("family", BOUNDED)
@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 8, 8)])
@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_a_convolutional_network_keeps_its_bound(family, shape, padding):
    """Secants never exceed gamma times the slope of the normalisation; the proven bound lies between them."""
    torch.manual_seed(0)
    mean, std = (0.5,) * shape[0], (0.25,) * shape[0]
    model = small(family, padding, mean, std).build(shape, 5)
    shaken(model, 1).double()
    bound = upper(model, shape).value
    assert bound <= 2.0 * 4 * (1 + 1e-6)
    x, step = torch.rand(64, *shape, dtype=torch.float64), torch.randn(64, *shape, dtype=torch.float64) * 0.01
    with torch.no_grad():
        slopes = (model(x + step) - model(x)).norm(dim=1) / step.flatten(1).norm(dim=1)
        torch.testing.assert_close(freeze(model)(x), model(x), rtol=1e-6, atol=1e-8)
    assert slopes.max() <= bound


class Small(KWL):
    """A KWL network of toy size."""

    def build(self, shape, classes):
        return self._assemble(shape, classes, [(6, 1), (8, 2)], (12,))


def small(family, padding, mean, std):
    return Small(family=family, padding=padding, lipschitz=2.0, mean=mean, std=std)


@pytest.mark.parametrize("family", BOUNDED)
def test_a_dense_network_keeps_its_bound_and_learns_gamma(family):
    torch.manual_seed(0)
    node = LipschitzBounded(hidden=(8, 6), family=family, lipschitz=3.0, activation="maxmin", learnable=True)
    model = node.build((1, 3, 3), 4)
    assert upper(model.eval(), (1, 3, 3)).value <= 3.0 * (1 + 1e-6)
    loss = model(torch.rand(5, 1, 3, 3)).square().sum()
    loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    twin = node.build((1, 3, 3), 4)
    fill(twin, model.state_dict(), "twin")
    torch.testing.assert_close(twin(torch.ones(1, 1, 3, 3)), model(torch.ones(1, 1, 3, 3)))


@pytest.mark.parametrize("family", ["sll", "cpl"])
def test_a_residual_network_keeps_its_bound(family):
    torch.manual_seed(0)
    node = LipschitzResNet(family=family, blocks=3, channels=12, dense_blocks=2, inner_features=20, lipschitz=1.5)
    model = shaken(node.build((3, 8, 8), 10), 2)
    assert upper(model, (3, 8, 8)).value <= 1.5 * (1 + 1e-6)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_a_normalised_head_bounds_pairs_only():
    torch.manual_seed(0)
    model = shaken(DNN(family="orthogonal").model_copy().build((3, 16, 16), 40), 3)
    bounds = pairs(model, (3, 16, 16), 40)
    assert bounds.max() <= 2 * (1 + 1e-6)  # two rows of norm one
    assert not isinstance(model[0], Normalize)


def test_liresnet_trains_and_has_a_proven_bound():
    torch.manual_seed(0)
    model = LiResNet(blocks=2, channels=8, features=16).build((3, 16, 16), 5)
    bound = upper(model.eval(), (3, 16, 16)).value
    x = torch.rand(32, 3, 16, 16, dtype=torch.float64)
    step = torch.randn_like(x) * 0.01
    model.double()
    slopes = (model(x + step) - model(x)).norm(dim=1) / step.flatten(1).norm(dim=1)
    assert 0 < slopes.max() <= bound


@pytest.mark.parametrize(
    "node, shape, line",
    [
        (KWL(), (64,), "kwl needs images"),
        (LipschitzResNet(channels=2), (3, 8, 8), "at least 3 channels"),
        (LiResNet(channels=7), (3, 16, 16), "even widths"),
    ],
)
def test_what_cannot_be_built_is_one_line(node, shape, line):
    with pytest.raises(UserError, match=line):
        node.build(shape, 10)


def test_every_family_is_a_field_of_a_recipe():
    for family in get_args(Family):
        stored = {"data": {"name": "digits"}, "network": {"name": "lipschitz_bounded", "hidden": [8], "family": family}}
        model = build(TrainRecipe.parse(stored), (1, 8, 8), 10)
        assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
