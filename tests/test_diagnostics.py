"""Diagnostics: honest networks trip nothing, each kind of mask trips the diagnosis made for it, nothing is left behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import constant_model, masking_model
from sklearn.datasets import load_digits
from torch import nn

from robustbench_rkhs.attacks import PGD, Square
from robustbench_rkhs.evaluation.diagnostics import CHECKS, diagnose, escalated
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.training.checkpoint import load

ROOT = Path(__file__).resolve().parent.parent
DIGITS = load_digits()
X, Y = torch.tensor(DIGITS.images, dtype=torch.float32)[:, None] / 16, torch.tensor(DIGITS.target)
TRAINED = 1200


def trained(attack=None, activation=nn.ReLU, epochs=12):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(TRAINED).split(128):
            x = attack(model, X[batch], Y[batch], batch).images if attack else X[batch]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), Y[batch]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def plain():
    return trained()


def said(model, norm="l2", eps=0.6, box="unit", images=40, x=None, y=None, **more):
    x, y = (X[TRAINED:], Y[TRAINED:]) if x is None else (x, y)
    keys = torch.arange(len(x)) + 10
    return {one.name: one for one in diagnose(model, x, y, keys, norm=norm, box=box, eps=eps, images=images, **more)}


def tripped(model, **settings):
    return {name for name, one in said(model, **settings).items() if one.tripped}


HONEST = [("l2", "unit", 0.6), ("linf", "unit", 0.1), ("l2", "none", 0.6)]


@pytest.mark.parametrize(("norm", "box", "eps"), HONEST)
def test_a_plain_network_trips_nothing(plain, norm, box, eps):
    found = said(plain, norm=norm, box=box, eps=eps, images=48)
    assert not [one for one in found.values() if one.tripped]
    assert list(found) == [name for name in CHECKS if name != "transfer"]
    assert sum(one.cost for one in found.values()) < 1500


def test_an_adversarially_trained_network_trips_nothing(plain):
    robust = trained(PGD(norm="linf", eps=0.15, steps=4, targets=0), epochs=8)
    assert not tripped(robust, norm="linf", eps=0.15, twin=plain, images=48)


@pytest.mark.parametrize("name", ["digits_gloro", "digits_sandwich"])
def test_a_lipschitz_network_trips_nothing_though_its_logits_are_small(name):
    assert not tripped(load(ROOT / "checkpoints" / name).model, eps=1.0, images=12)


class Mapped(nn.Module):
    """A function without parameters, as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Lie(torch.autograd.Function):
    """The identity; backwards, an orderless sign."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return torch.sin(7919 * x) * gradient.abs()


class Trap(Lie):
    """The identity, with its true gradient on the data's own grey levels and the opposite one everywhere else."""

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        at_data = ((x * 16).frac().abs() < 1e-6).flatten(1).all(1).view(-1, 1, 1, 1)
        return torch.where(at_data, gradient, -gradient)


def before(function):
    return lambda net: nn.Sequential(Mapped(function), net)


def after(function):
    return lambda net: nn.Sequential(net, Mapped(function))


MASKS = {
    "rounded logits": (after(torch.round), {"softmaxed"}),  # attacked through: the gradients are those before rounding
    "quantised input": (before(lambda x: (x * 4).round() / 4), {"zero_gradients", "huge_eps", "black_box", "random_direction"}),
    "detached input": (before(lambda x: x.detach()), {"zero_gradients", "huge_eps", "black_box"}),
    "NaN gradient": (before(lambda x: x + 0 * (x - x).sqrt()), {"zero_gradients", "huge_eps"}),
    "noise": (before(lambda x: x + 0.1 * torch.randn_like(x)), {"randomised"}),
    "little noise": (after(lambda f: f + 0.01 * torch.randn_like(f)), {"randomised"}),
    "neighbours": (after(lambda f: f - 0.1 * f.roll(1, 0)), {"randomised"}),
    "probabilities": (after(lambda f: f.softmax(1)), {"softmaxed"}),
    "saturated log-probabilities": (after(lambda f: (50 * f).log_softmax(1)), {"softmaxed", "logit_scale"}),
    "clamped logits": (after(lambda f: f.clamp(max=3)), {"softmaxed"}),
    "logits of 1e4": (after(lambda f: 1e4 * f), {"logit_scale"}),
    "orderless gradient": (before(Lie.apply), {"random_direction", "black_box"}),
    "trap": (before(Trap.apply), {"single_step", "black_box"}),
    "bumps": (before(lambda x: x + 0.05 * torch.sin(60 * x)), {"convergence"}),
}


@pytest.mark.parametrize(("mask", "expected"), MASKS.values(), ids=MASKS.keys())
def test_each_mask_trips_the_diagnosis_made_for_it(plain, mask, expected):
    found = said(mask(plain), images=40, checks=tuple(expected))
    assert expected == {name for name, one in found.items() if one.tripped}, list(found.values())


@pytest.mark.parametrize("function", [lambda f: 1e-4 * f, lambda f: f.log_softmax(1)], ids=["logits of 1e-4", "log-probabilities"])
def test_outputs_that_hide_nothing_trip_nothing(plain, function):
    assert not tripped(after(function)(plain), checks=("softmaxed", "zero_gradients", "logit_scale", "huge_eps"))


def test_a_saturating_layer_has_no_gradient_and_a_stepwise_one_neither(plain):
    soft = trained(activation=nn.Tanh)
    sharp = nn.Sequential(*soft[:2], Mapped(lambda h: torch.tanh(1e4 * h)), *soft[3:])
    steps = nn.Sequential(*plain[:2], Mapped(lambda h: (2 * h).floor() / 2), *plain[3:])
    for model in (sharp, steps):
        found = said(model, checks=("zero_gradients",))
        assert found["zero_gradients"].tripped and found["zero_gradients"].value > 0.5


def test_a_gradient_that_only_float32_loses_is_named(plain):
    def fragile(images):
        return images * (1 + (1e-25 * (1 + images)).square().sqrt())  # the root has no gradient at 0 in float64 either

    model = before(fragile)(plain)
    one = said(model, checks=("zero_gradients",))["zero_gradients"]
    assert one.tripped and one.value == 1.0 and "float32 underflows" in one.words
    assert next(plain.parameters()).dtype == torch.float32


def test_a_twin_breaks_what_false_gradients_left(plain):
    found = said(before(Lie.apply)(plain), twin=plain, checks=("transfer",))
    assert found["transfer"].tripped and not said(plain, checks=("transfer",))


def test_logit_scale_counts_what_a_closed_form_says():
    model, x, y, *_ = masking_model()
    large = nn.Sequential(model, Mapped(lambda f: 1e4 * f))
    one = said(large, eps=1.0, x=x, y=y, checks=("logit_scale",))["logit_scale"]
    assert one.tripped and one.value == 1.0  # every image flips at 0.71, and float32 has no gradient of cross-entropy


def test_nothing_is_left_behind(plain):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 10))
    model[3].eval()
    modes = [module.training for module in model.modules()]
    model[0].weight.grad = torch.ones_like(model[0].weight)
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y, twin = X[:30], model.eval()(X[:30]).argmax(1), plain.train()
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    kept, states = x.clone(), (torch.get_rng_state(), np.random.get_state()[1].copy())
    found = said(model, x=x, y=y, eps=0.3, twin=twin)
    assert len(found) == len(CHECKS)
    assert [module.training for module in model.modules()] == modes and plain.training
    plain.eval()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert (model[0].weight.grad == 1).all() and model[4].weight.grad is None and model[4].weight.requires_grad
    assert torch.equal(x, kept) and torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # (the type checker of the tests draws from Python's own generator)


def test_the_sample_is_counted_by_key(plain):
    x, y, keys = X[TRAINED:], Y[TRAINED:], torch.arange(len(X) - TRAINED)
    settings = {"norm": "l2", "box": "unit", "eps": 0.6, "images": 12, "checks": ("randomised", "random_direction", "logit_scale")}
    first = diagnose(plain, x, y, keys, **settings)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    found = {"pgd": torch.full((len(x),), torch.inf, dtype=torch.float64)}
    assert diagnose(plain, x[order], y[order], keys[order], found=found, **settings) == first
    noisy = before(lambda x: x + 0.1 * torch.randn_like(x))(plain)
    assert diagnose(noisy, x, y, keys, **settings) == diagnose(noisy, x, y, keys, **settings)
    assert diagnose(plain, x, y, keys, **settings, seed=5) != first


def test_what_the_evaluation_knows_is_not_asked_again(plain):
    x, y = X[TRAINED : TRAINED + 30], Y[TRAINED : TRAINED + 30]
    every = torch.ones(30, dtype=torch.bool)
    dear = ("single_step", "black_box", "convergence", "logit_scale")
    broken = torch.full((30,), 0.1, dtype=torch.float64)
    for known in ({"closed": every}, {"found": {"pgd": broken}}):
        found = said(plain, x=x, y=y, eps=0.2, **known)
        assert sum(found[name].cost for name in dear) == 0 and not [one for one in found.values() if one.tripped]
    by_queries = said(plain, x=x, y=y, eps=0.2, found={"pgd": broken + 1, "square": broken})
    assert by_queries["black_box"].tripped and by_queries["black_box"].value == 1.0
    both = said(plain, x=x, y=y, eps=0.2, found={"pgd": broken, "square": broken})
    assert not both["black_box"].tripped


EDGES = {
    "no image": (nn.Flatten(), (0, 1, 2, 2), torch.float32),
    "one class": (nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), (3, 1, 2, 2), torch.float32),
    "two classes, features": (nn.Linear(5, 2), (8, 5), torch.float32),
    "one feature": (nn.Linear(1, 2), (8, 1), torch.float32),
    "float64, not square": (nn.Sequential(nn.Flatten(), nn.Linear(30, 3)).double(), (8, 2, 3, 5), torch.float64),
    "one image": (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 1, 2, 2), torch.float32),
}


@pytest.mark.parametrize(("norm", "box"), [("l2", "unit"), ("linf", "none")])
@pytest.mark.parametrize(("model", "shape", "dtype"), EDGES.values(), ids=EDGES.keys())
def test_every_shape_and_number_of_classes_is_taken(model, shape, dtype, norm, box):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=dtype).flip(0)
    y = model(x).argmax(1) if len(x) else torch.zeros(0, dtype=torch.int64)
    for eps, labels in ((0.0, y), (0.3, y), (0.3, y * 0 + 1)):
        found = said(model, norm=norm, box=box, eps=eps, x=x, y=labels)
        assert not [one for one in found.values() if one.words.startswith("could not")]
        assert len(x) or not found


def test_a_constant_model_is_marked_and_a_bad_eps_refused():
    x = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for attached in (True, False):
        found = tripped(constant_model(3, attached=attached), x=x, y=torch.zeros(12, dtype=torch.int64), eps=0.3)
        assert {"zero_gradients", "huge_eps"} <= found
    with pytest.raises(UserError, match="no check 'blackbox'; did you mean 'black_box'"):
        said(constant_model(3), checks=("blackbox",))
    with pytest.raises(UserError, match="eps must not be negative, found -1"):
        said(constant_model(3), eps=-1.0)


def test_a_check_that_fails_says_so(plain):
    def failing(x):
        if x.requires_grad:
            raise RuntimeError("no gradients here")
        return x

    found = said(before(failing)(plain), images=8)
    assert found["zero_gradients"].words == "could not run: no gradients here" and not found["randomised"].tripped


def test_escalation_is_what_the_marks_call_for():
    assert escalated((PGD(),), ()) == ()
    found = escalated((PGD(box="none"),), ("zero_gradients",))
    assert [attack.label for attack in found] == ["apgd:margin", "ensemble:plus", "square"]
    assert {attack.box for attack in found} == {"none"} and found[2].queries > Square().queries
    assert all(attack.expectation > 1 for attack in escalated((PGD(),), ("randomised", "black_box")))
    through = escalated((Square(straight_through=("0",)),), ("black_box",))
    assert all(attack.straight_through == ("0",) for attack in through)
