"""The packed copy for the search: the same function in forward and backward, and only the model itself counts."""

import pytest
import torch
from torch import nn

from robustbench_rkhs.attacks import APGD, DDN, packed_copy
from robustbench_rkhs.attacks import engine_attack as attacked
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.packed_copy import _PackedConv

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 5, "padding": 0, "bias": False},
    {"kernel_size": (3, 1), "padding": (2, 0)},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "padding": 1},
]


@pytest.fixture(autouse=True)
def small_networks_too(monkeypatch):
    monkeypatch.setattr(packed_copy, "WORTH", 0)


def network(**settings):
    torch.manual_seed(0)
    middle = nn.Conv2d(4, 6, **settings)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), middle, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | _PackedConv)]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_its_logits_and_gradients_are_those_of_the_network(settings):
    model, x = network(**settings), torch.rand(7, 2, 9, 8)
    model(x)  # the lazy layer
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        packed = packed_copy.packed_copy(model, x)
    assert [type(one) for one in convolutions(packed)] == [_PackedConv] * 2 and packed[5].weight is model[5].weight
    assert [type(one) for one in convolutions(model)] == [nn.Conv2d] * 2
    images, weights = x[3:].clone().requires_grad_(), torch.randn(4, 5)
    (slope,) = torch.autograd.grad((packed(images) * weights).sum(), images)
    double, exact = model.double(), images.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad((double(exact) * weights).sum(), exact)
    torch.testing.assert_close(slope.double(), truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed_logits(packed, model, images), double(exact), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(tensor.double(), model.state_dict()[name]) for name, tensor in state.items())


def packed_logits(packed, model, images):
    """The logits of the copy; its unpacked layers are the network's, which is float64 by now."""
    model.float()
    found = packed(images.detach()).detach().double()
    model.double()
    return found


class Twice(nn.Conv2d):
    """A convolution of a user's own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Noisy(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 0.1 * torch.rand(len(x), 1)


def test_what_is_not_the_same_function_has_no_copy():
    own = nn.Sequential(Twice(2, 4, 3), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.rand(4, 2, 6, 6)
    own(x)
    plain = network(kernel_size=3)
    plain(x)
    hooked = network(kernel_size=3)
    hooked(x)
    for index in (0, 2):
        hooked[index].register_forward_hook(lambda module, given, output: 3 * output)
    for model in (own, Noisy(plain), hooked, nn.Sequential(nn.Flatten(), nn.Linear(72, 3))):
        assert packed_copy.packed_copy(model, x) is None
    for images in (x.double(), x[:0]):
        assert packed_copy.packed_copy(plain, images) is None
    assert packed_copy.packed_copy(plain, x) is not None


def test_a_small_network_is_not_packed(monkeypatch):
    model, x = network(kernel_size=3), torch.rand(4, 2, 6, 6)
    model(x)
    monkeypatch.setattr(packed_copy, "WORTH", 1e7)
    assert packed_copy.packed_copy(model, x) is None


class Liar(nn.Module):
    """Says that every image is misclassified, and every image but the first clearly."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return -self.model(x)


def test_only_the_model_itself_breaks_an_image():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), torch.rand(6, 1, 4, 4)
    y, budget = model(x).argmax(1), torch.full((6,), 9.0, dtype=torch.float64)
    engine = Engine(model, x, y, torch.arange(6), norm="l2", box="unit", eps=budget, packed=Liar(model))
    every = torch.arange(6)
    engine.logits(every, x)
    assert not engine.broken.any() and (engine.forwards == 3).all()  # the clean logits, the copy's, the model's


def test_a_search_by_the_copy_breaks_the_same_images(digits, monkeypatch):
    model, x, y = conv_on(digits)
    keys, seen = torch.arange(len(x)), []
    monkeypatch.setattr(attacked, "packed_copy", lambda *given: seen.append(packed_copy.packed_copy(*given)) or seen[-1])
    attack = APGD(eps=0.4, loss="targeted", steps=20, targets=3)
    fast = attack(model, x, y, keys)
    monkeypatch.setattr(attacked, "packed_copy", lambda *given: None)
    plain = attack(model, x, y, keys)
    assert seen[0] is not None and 0 < plain.broken.sum() < len(x)
    assert (fast.broken == plain.broken).float().mean() > 0.95
    assert (model(fast.images).argmax(1) != y)[fast.broken].all()


def test_the_nearest_image_is_searched_by_the_model_itself(digits, monkeypatch):
    model, x, y = conv_on(digits)
    monkeypatch.setattr(attacked, "packed_copy", lambda *given: pytest.fail("expected no copy"))
    DDN(steps=2)(model, x[:2], y[:2], torch.arange(2))


def conv_on(digits):
    """A convolution before the trained network that passes the images on, and its correctly classified images."""
    first = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, 0, 1, 1] = 1
    return nn.Sequential(first, digits.model).eval(), digits.x[:30], digits.y[:30]
