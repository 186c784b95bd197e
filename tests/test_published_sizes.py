"""Networks of Wang & Manchester (ICML 2023): parameter counts as published, starts, heads, and what `lipschitz` bounds."""

import math

import pytest
import torch

from robustbench_rkhs.bounds import upper
from robustbench_rkhs.networks.kwl import DNN, KWL
from robustbench_rkhs.networks.lipschitz_bounded import LipschitzBounded
from robustbench_rkhs.networks.lipschitz_resnet import LipschitzResNet
from robustbench_rkhs.networks.skeleton import skeleton

CIFAR, TINY = (3, 32, 32), (3, 64, 64)
SIZES = {
    "kwl plain, CIFAR-10": (KWL(family="plain"), CIFAR, 10, 3.02),
    "kwl aol, CIFAR-10": (KWL(family="aol"), CIFAR, 10, 3.02),
    "kwl orthogonal, CIFAR-10": (KWL(family="orthogonal"), CIFAR, 10, 3.00),
    "kwl sandwich, CIFAR-10": (KWL(head="published"), CIFAR, 10, 2.98),
    "kwl plain large, CIFAR-100": (KWL(family="plain", width=4), CIFAR, 100, 48.4),
    "kwl aol large, CIFAR-100": (KWL(family="aol", width=4), CIFAR, 100, 48.4),
    "kwl orthogonal large, CIFAR-100": (KWL(family="orthogonal", width=4), CIFAR, 100, 48.0),
    "kwl sandwich large, CIFAR-100": (KWL(head="published", width=4), CIFAR, 100, 47.8),
    "kwl plain, Tiny-ImageNet": (KWL(family="plain"), TINY, 200, 11.0),
    "kwl aol, Tiny-ImageNet": (KWL(family="aol"), TINY, 200, 11.0),
    "kwl orthogonal, Tiny-ImageNet": (KWL(family="orthogonal"), TINY, 200, 11.0),
    "kwl sandwich, Tiny-ImageNet": (KWL(head="published"), TINY, 200, 9.4),
    "kwl plain medium, Tiny-ImageNet": (KWL(family="plain", width=2), TINY, 200, 43.7),
    "kwl aol medium, Tiny-ImageNet": (KWL(family="aol", width=2), TINY, 200, 43.7),
    "kwl orthogonal medium, Tiny-ImageNet": (KWL(family="orthogonal", width=2), TINY, 200, 43.6),
    "kwl sandwich medium, Tiny-ImageNet": (KWL(head="published", width=2), TINY, 200, 37.3),
    "dnn, CIFAR-100": (DNN(), CIFAR, 100, 25.8),
    "dnn, Tiny-ImageNet": (DNN(), TINY, 200, 39.2),
    "sll small, CIFAR-100": (LipschitzResNet(), CIFAR, 100, 41.4),
    "sll medium, CIFAR-100": (LipschitzResNet(blocks=30, channels=60, dense_blocks=10), CIFAR, 100, 78.8),
    "sll large, CIFAR-100": (LipschitzResNet(blocks=90, channels=60, dense_blocks=15), CIFAR, 100, 118.3),
}
"""Network, images, classes, published millions of parameters."""


@pytest.mark.parametrize("network, shape, classes, millions", SIZES.values(), ids=SIZES.keys())
def test_parameters_are_as_many_as_published(network, shape, classes, millions):
    found = skeleton(network, shape, classes, 10**6, 10**10)
    names = [name for name in found if not name.endswith((".mean", ".std"))]
    counted = sum(math.prod(found[name].shape) for name in names) / 1e6
    assert abs(counted - millions) < (0.0051 if millions < 9 else 0.051)  # published with two or one decimals


@pytest.mark.parametrize("family", ["sandwich", "orthogonal", "sll"])
@pytest.mark.parametrize("start", ["identity", "published"])
@pytest.mark.parametrize("head", ["bounded", "published"])
def test_every_start_and_head_keeps_the_bound(family, start, head):
    torch.manual_seed(0)
    model = LipschitzBounded(hidden=(12, 12), family=family, start=start, head=head, lipschitz=3.0).build((5,), 4).double()
    x = torch.randn(1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(model, x).reshape(4, 5)
    assert torch.linalg.matrix_norm(jacobian, 2) <= 3 * (1 + 1e-9)
    assert torch.linalg.matrix_norm(jacobian, 2) <= upper(model, (5,)).value <= 3 * (1 + 1e-6)


@pytest.mark.parametrize("learnable", [False, True])
def test_lipschitz_holds_in_the_units_it_names(learnable):
    fields = {"hidden": (8,), "lipschitz": 2.0, "mean": (0.5,), "std": (0.25,), "learnable": learnable}
    for unit, expected in (("normalized", 8.0), ("pixels", 2.0)):
        model = LipschitzBounded(lipschitz_in=unit, **fields).build((1, 3, 3), 4)
        assert upper(model, (1, 3, 3)).value == pytest.approx(expected, rel=1e-5)


def test_the_published_start_is_uniform():
    model = LipschitzBounded(hidden=(64,), start="published", head="published").build((32,), 10)
    sandwich, head = model[2], model[4]
    for layer, fan in ((sandwich, 32 + 64), (head, 64 + 10)):
        limit = 1 / math.sqrt(fan)
        assert 0.95 * limit < layer.weight.abs().max() <= limit and 0 < layer.bias.abs().max() <= limit
        assert layer.alpha == layer.weight.norm()
