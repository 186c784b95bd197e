"""Which models are one: those of one function, whatever they are called, whoever holds the same tensors."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_rkhs.identity import fixed_logits, identity_of, key_of, structure
from robustbench_rkhs.layers import Normalize
from robustbench_rkhs.layers.scale import Scale
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.verifier.probes import agree, fixed_images
from robustbench_rkhs.zoo.models import as_module

SHAPE = (1, 4, 4)


def plain() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)]


class Residual(nn.Module):
    """A network of one's own, whose forward says what it computes."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.factor, self.calls = nn.Linear(16, 16), nn.Linear(16, 3), factor, 0

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(x + self.factor * torch.relu(self.first(x)))


class Branching(Residual):
    """One that no symbol passes through."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) if x.sum() > -1 else super().forward(-x)


OTHERS = {
    "a scale": lambda: nn.Sequential(*plain(), Scale(1.5)),
    "another scale": lambda: nn.Sequential(*plain(), Scale(1.0)),
    "another activation": lambda: nn.Sequential(*plain()[:2], nn.LeakyReLU(), plain()[3]),
    "another slope": lambda: nn.Sequential(*plain()[:2], nn.LeakyReLU(0.5), plain()[3]),
    "normalised": lambda: nn.Sequential(Normalize([0.5], [0.5]), *plain()),
    "otherwise normalised": lambda: nn.Sequential(Normalize([0.5], [0.25]), *plain()),
    "smoothed": lambda: Smoothed(nn.Sequential(*plain()), 0.25),
    "smoothed more": lambda: Smoothed(nn.Sequential(*plain()), 0.5),
    "smoothed by more votes": lambda: Smoothed(nn.Sequential(*plain()), 0.25, votes=200),
    "a residual": lambda: Residual(),
    "another residual": lambda: Residual(2.0),
    "one that branches": lambda: Branching(),
    "another that branches": lambda: Branching(2.0),
    "half precision": lambda: nn.Sequential(*plain()).half(),
    "a hook": lambda: hooked(nn.Sequential(*plain())),
    "a function": lambda: as_module(lambda x: 2 * x.flatten(1)),
    "another function": lambda: as_module(lambda x: 3 * x.flatten(1)),
    "plain": lambda: nn.Sequential(*plain()),
}


def hooked(model: nn.Module) -> nn.Module:
    model[1].register_forward_hook(lambda module, given, out: 2 * out)
    return model


def test_every_other_function_has_another_key():
    """Most of them hold the same tensors."""
    keys = {name: key_of(make().eval()) for name, make in OTHERS.items()}
    assert len(set(keys.values())) == len(keys)
    assert keys == {name: key_of(make().eval()) for name, make in OTHERS.items()}


def test_names_nesting_mode_device_and_copies_are_no_part_of_a_function():
    model = nn.Sequential(*plain()).eval()
    layers = plain()
    nested = nn.Sequential(nn.Sequential(*layers[:2]), nn.Sequential(nn.Sequential(*layers[2:])))
    assert key_of(model) == key_of(nested) == key_of(copy.deepcopy(model)) == key_of(model.train())
    assert model.training and key_of(nn.Sequential(*layers[:2], nn.ReLU(inplace=True), layers[3])) == key_of(model)
    residual = Residual()
    before = key_of(residual)
    residual.calls = 7
    assert key_of(residual) == before == identity_of(residual, SHAPE).key
    branching = Branching()
    assert key_of(branching) == key_of(branching) and branching(torch.rand(2, *SHAPE)).shape == (2, 3)


def test_a_weight_is_part_of_the_function_and_an_idle_counter_is_not():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    before = key_of(model)
    model[1].num_batches_tracked += 1
    assert key_of(model) == before
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1e-7
    assert key_of(model) != before


def test_what_is_traced_is_a_graph_and_the_rest_its_class_and_values():
    assert isinstance(structure(nn.Sequential(*plain())), list) and isinstance(structure(Residual().eval()), list)
    held = structure(Branching(2.0).eval())
    assert held["class"] == [f"{__name__}:Branching"] and held["values"] == {"factor": "2.0"}
    smoothed = structure(Smoothed(nn.Sequential(*plain()), 0.25))
    assert smoothed["values"]["sigma"] == "0.25" and smoothed["children"][0][1] == structure(nn.Sequential(*plain()))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_fixed_images_are_answered_in_float64(kind):
    model = nn.Sequential(*plain()).to(kind)
    found = torch.tensor(fixed_logits(model, SHAPE), dtype=torch.float64)
    expected = copy.deepcopy(model).double()(torch.from_numpy(fixed_images(SHAPE)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert next(model.parameters()).dtype == kind and model.training
    assert fixed_logits(model, (1, 5, 4)) == () == fixed_logits(nn.Identity(), SHAPE)
    base = Smoothed(model, 0.25)
    assert fixed_logits(base, SHAPE) == fixed_logits(model, SHAPE)
    net = model.float()
    assert agree(fixed_logits(as_module(lambda x: net(x)), SHAPE), fixed_logits(net, SHAPE))


def test_the_fixed_images_never_change():
    images = fixed_images(SHAPE)
    assert images.shape == (8, *SHAPE) and images.min() >= 0 and images.max() <= 1 and len(np.unique(images)) == images.size
    assert np.array_equal(fixed_images(SHAPE), images) and images[7].max() <= 0.1
    np.testing.assert_array_equal(images[0, 0, 0, :2], [0.8833108082136426, 0.43152799704850997])


def test_logits_agree_to_a_ten_thousandth_of_the_largest_of_an_image():
    one = np.array([[1.0, -2.0], [0.0, 100.0]])
    assert agree(one.tolist(), (one * (1 + 0.9e-4)).tolist()) and not agree(one.tolist(), (one * (1 + 1.2e-4)).tolist())
    assert not agree(one.tolist(), (one + np.array([[0, 3e-4], [0, 0]])).tolist()) and agree([[0.0]], [[0.0]])
    assert not agree(one.tolist(), [[1.0, 2.0]]) and not agree(one.tolist(), []) and not agree([["a"]], [[1.0]])
    assert not agree([[float("nan")]], [[float("nan")]])
