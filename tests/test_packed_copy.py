"""The packed copy for the search: the same function in forward and backward, and only the model itself counts."""

import pytest
import torch
from oracles import affine
from torch import nn

from robustbench_rkhs.attacks import APGD, DDN, packed_copy
from robustbench_rkhs.attacks import engine_attack as attacked
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.packed_copy import HalfPrecision, _PackedConv

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
    monkeypatch.setattr(attacked, "search_copy", lambda model, x, half: seen.append(packed_copy.packed_copy(model, x)) or seen[-1])
    attack = APGD(eps=0.4, loss="targeted", steps=20, targets=3)
    fast = attack(model, x, y, keys)
    monkeypatch.setattr(attacked, "search_copy", lambda *given: None)
    plain = attack(model, x, y, keys)
    assert seen[0] is not None and 0 < plain.broken.sum() < len(x)
    assert (fast.broken == plain.broken).float().mean() > 0.95
    assert (model(fast.images).argmax(1) != y)[fast.broken].all()


def test_the_nearest_image_is_searched_by_the_model_itself(digits, monkeypatch):
    model, x, y = conv_on(digits)
    monkeypatch.setattr(attacked, "search_copy", lambda *given: pytest.fail("expected no copy"))
    DDN(steps=2)(model, x[:2], y[:2], torch.arange(2))


def conv_on(digits):
    """A convolution before the trained network that passes the images on, and its correctly classified images."""
    first = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, 0, 1, 1] = 1
    return nn.Sequential(first, digits.model).eval(), digits.x[:30], digits.y[:30]


bfloat16_convolves = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN does not convolve in bfloat16 on this processor"
)


@bfloat16_convolves
@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_a_copy_in_bfloat16_is_off_by_its_rounding_and_leaves_the_pixels_alone(settings):
    torch.manual_seed(1)
    middle = nn.Conv2d(8, 6, **settings)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), middle, nn.Tanh(), nn.Flatten(), nn.LazyLinear(5)).eval()
    x, weights = torch.rand(7, 2, 9, 8), torch.randn(7, 5)
    model(x)
    copied = packed_copy.packed_copy(model, x, torch.bfloat16)
    assert isinstance(copied, HalfPrecision) and [type(one) for one in convolutions(copied)] == [nn.Conv2d, _PackedConv]
    results = []
    for one in (model, copied):
        images = x.clone().requires_grad_()
        logits = one(images)
        results.append((logits.detach(), *torch.autograd.grad((logits * weights).sum(), images)))
    (truth, slope), (found, other) = results
    assert not torch.equal(found, truth)
    torch.testing.assert_close(found, truth, rtol=0, atol=0.01 * float(truth.abs().max()))
    assert ((other - slope).flatten(1).norm(dim=1) <= 0.1 * slope.flatten(1).norm(dim=1)).all()


@bfloat16_convolves
def test_logits_whose_differences_bfloat16_loses_have_no_copy_in_it():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5)).eval(), torch.rand(4, 8, 6, 6)
    model(x)
    assert packed_copy.packed_copy(model, x, torch.bfloat16) is not None
    with torch.no_grad():
        model[0].bias += 1000.0  # the convolution's outputs round to multiples of 4
        model[2].bias -= 1000.0 * model[2].weight.sum(1)
    assert packed_copy.packed_copy(model, x, torch.bfloat16) is None
    assert packed_copy.packed_copy(model, x) is not None


@pytest.mark.parametrize(
    ("features", "precision", "expected"),
    [
        ({"amx_bf16", "avx512_bf16"}, "fastest", [torch.bfloat16]),
        ({"amx_bf16", "avx512_bf16"}, "float32", []),
        ({"avx512_bf16"}, "fastest", [torch.bfloat16, torch.float32]),
        ({"avx512_bf16"}, "float32", [torch.float32]),
        (set(), "fastest", [torch.float32]),
    ],
)
def test_bfloat16_is_for_processors_that_are_made_for_it_and_for_who_lets_it(features, precision, expected, monkeypatch):
    """Where no copy agrees with the network, these are asked for in turn."""
    asked = []
    monkeypatch.setattr(packed_copy, "packed_copy", lambda model, x, dtype=torch.float32: asked.append(dtype))
    monkeypatch.setattr(packed_copy, "_processor_has", lambda feature: feature in features)
    oracle = affine(3, images=2)
    APGD(eps=0.1, steps=1, precision=precision)(oracle.model, oracle.x, oracle.y, torch.arange(2))
    assert asked == expected


class Optimist(nn.Module):
    """A copy that adds to each image's largest logit, so that its boundaries are too far away."""

    def __init__(self, model, share):
        super().__init__()
        self.model, self.share = model, share

    def forward(self, x):
        logits = self.model(x)
        return logits + self.share * nn.functional.one_hot(logits.argmax(1), logits.shape[1])


def search(oracle, eps, share, attack):
    """The result of an attack that asks such a copy, and the engine."""
    copied = HalfPrecision(Optimist(oracle.model, share))
    keys = torch.arange(len(oracle.x))
    engine = Engine(oracle.model, oracle.x, oracle.y, keys, norm="l2", box="none", eps=eps, packed=copied)
    attack.search(engine)
    return engine


def test_an_image_that_the_copy_brings_close_is_asked_of_the_model_and_searched_again():
    oracle = affine(4, images=8)
    clean = oracle.model(oracle.x).detach()
    share = 0.01 * (clean.amax(1) - clean.topk(2).values[:, 1]).min().item()
    eps, attack = 1.004 * oracle.l2, APGD(eps=1.0, loss="targeted", steps=50)
    engine = search(oracle, eps, share, attack)
    assert engine.near.error == pytest.approx(share, rel=1e-3)
    assert engine.searches_again() or engine.broken.all()
    attack.search(engine)
    assert engine.broken.all() and (engine.distance <= eps).all() and engine.packed is None
    assert (oracle.model(engine.images).argmax(1) != oracle.y).all()


def test_an_image_that_stays_far_away_is_not_searched_again():
    oracle = affine(4, images=8)
    attack = APGD(eps=1.0, loss="margin", steps=10)
    engine = search(oracle, torch.where(torch.arange(8) < 6, 0.5, 0.995) * oracle.l2, 1e-6, attack)
    once = engine.forwards.clone()
    assert engine.searches_again() and engine.open().tolist() == [6, 7]  # 0.5% of the clean margin is left there
    attack.search(engine)
    assert torch.equal(engine.forwards[:6], once[:6] + 1) and (engine.forwards[6:] > once[6:] + 1).all()  # one comparison
    assert not engine.broken.any()


class Numb(nn.Module):
    """A copy that is right about these images, and feels only half of any step away from the nearest of them."""

    def __init__(self, model, x):
        super().__init__()
        self.model, self.x = model, x

    def forward(self, x):
        nearest = self.x[torch.cdist(x.detach().flatten(1), self.x.flatten(1)).argmin(1)]
        return self.model(nearest + 0.5 * (x - nearest))


def test_a_network_whose_copy_errs_only_away_from_its_images_cannot_hide():
    oracle = affine(4, images=8)
    attack, eps = APGD(eps=1.0, loss="targeted", steps=20), 1.3 * oracle.l2
    copied, keys = HalfPrecision(Numb(oracle.model, oracle.x)), torch.arange(8)
    engine = Engine(oracle.model, oracle.x, oracle.y, keys, norm="l2", box="none", eps=eps, packed=copied)
    attack.search(engine)
    near = engine.near
    assert near.error < 1e-5 and not near.came_close().any() and not engine.broken.any()
    engine.searches_again()
    assert near.error > 0.1 * near.lowest.min() and near.came_close().all()
    attack.search(engine)
    assert engine.broken.all()


def test_a_copy_in_half_precision_breaks_no_image_by_itself():
    oracle = affine(3, images=6)
    budget = torch.full((6,), 9.0, dtype=torch.float64)
    copied = HalfPrecision(Liar(oracle.model))
    engine = Engine(oracle.model, oracle.x, oracle.y, torch.arange(6), norm="l2", box="none", eps=budget, packed=copied)
    engine.logits(torch.arange(6), oracle.x)
    assert not engine.broken.any()
