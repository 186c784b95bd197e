"""The public checks of `robustbench_rkhs.testing` on every network, loss, projection and data set of ours; bad ones fail them.

Penalties, layers, attacks and certificates: tests/test_penalties.py, test_layers.py, test_attacks.py, test_certificates.py.
That the table of methods covers what a recipe takes is asserted in tests/test_every_method.py.
"""

import numpy as np
import pytest
import torch
from method_table import METHODS, SHAPES, recipe_of
from test_losses import LOSSES
from torch import nn

from robustbench_rkhs.data import DataSet
from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.testing import check_data, check_loss, check_network, check_projection
from robustbench_rkhs.training.losses import LossNode
from robustbench_rkhs.training.projections import SpectralProjection


@pytest.mark.parametrize("name", METHODS["network"])
def test_networks(name):
    network = recipe_of("network", name, 1).network
    check_network(network, SHAPES[METHODS["network"][name][0]], 4)


def test_a_network_that_is_another_each_time_fails():
    class Restless(NetworkNode):
        def build(self, shape, classes):
            torch.seed()
            return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    with pytest.raises(AssertionError, match="same seed"):
        check_network(Restless(), (1, 8, 8), 4)


@pytest.mark.parametrize("label", LOSSES)
def test_losses(label):
    if LOSSES[label].regression:
        pytest.skip("a regression has no classes to err about")
    check_loss(LOSSES[label])


def test_a_loss_that_rewards_mistakes_fails():
    class Upside(LossNode):
        def __call__(self, model, x, y, keys=None):
            return -nn.functional.cross_entropy(model(x), y)

    with pytest.raises(AssertionError, match="higher where the model errs"):
        check_loss(Upside())


def norms(model, flat):
    """Spectral norms of all weights, reshaped or (for the convolution) of the dense operator on images 4 x 4."""
    found = []
    for layer in model:
        if isinstance(layer, nn.Linear) or (flat and isinstance(layer, nn.Conv2d)):
            found.append(torch.linalg.matrix_norm(layer.weight.flatten(1).double(), 2))
        elif isinstance(layer, nn.Conv2d):
            eye = torch.eye(32, dtype=torch.float64).view(32, 2, 4, 4)
            rows = nn.functional.conv2d(eye, layer.weight.double(), padding=1).flatten(1)
            found.append(torch.linalg.matrix_norm(rows, 2))
    return torch.stack(found)


@pytest.mark.parametrize("operator", ["reshaped", "operator"])
def test_projections(operator):
    projection = SpectralProjection(tau=0.8, kappa=None, operator=operator)
    check_projection(projection, lambda model: bool((norms(model, operator == "reshaped") <= 0.8 * (1 + 1e-5)).all()), 1e-3)


def test_a_projection_that_does_nothing_fails():
    with pytest.raises(AssertionError, match="must map into its set"):
        check_projection(lambda model, epoch: None, lambda model: bool((norms(model, True) <= 0.8).all()))


@pytest.mark.parametrize("name", METHODS["data"])
def test_data_sets(name, data_of_every_set, monkeypatch):
    monkeypatch.setenv("RKHS_DATA", str(data_of_every_set))
    check_data(recipe_of("data", name, 0).data, validation=4)


def test_a_data_set_that_is_another_each_time_fails():
    class Restless(DataSet):
        def arrays(self):
            x, y = np.random.default_rng().random((20, 1, 4, 4), np.float32), np.arange(20) % 2
            return x[:12], y[:12], x[12:], y[12:]

    with pytest.raises(AssertionError, match="the same each time"):
        check_data(Restless(), 4)
