"""The ensemble against AutoAttack's own package and closed forms; the spared effort against the full one, masked or not."""

import pytest
import torch
from oracles import affine
from pydantic import ValidationError
from torch import nn

from robustbench_rkhs.attacks import APGD, FAB, AutoAttack, Ensemble, Square
from robustbench_rkhs.attacks.adaptive_budget import Spending, frugal, pilot
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.evaluation.recipe import attack_from
from robustbench_rkhs.nodes.node import UserError

SHORT = (
    APGD(steps=15),
    APGD(loss="targeted", steps=15, targets=3),
    FAB(steps=10, targets=2),
    Square(queries=150),
)
"""A battery in small."""


def stands(attack, model, x, y):
    """Counted anew: inside the ball, and still right."""
    found = attack(model, x, y, torch.arange(len(x))).images
    assert found.min() >= 0 and found.max() <= 1 and distances(x, found, attack.norm).max() <= attack.eps + 1e-6
    with torch.no_grad():
        return model(found).argmax(1) == y


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.2), ("l2", 0.4), ("linf", 0.03), ("linf", 0.06)])
def test_not_above_the_authors_package(digits, norm, eps):
    model, x, y = digits
    parts, names = Ensemble().parts[:2], ("apgd-ce", "apgd-t")  # the others break next to nothing and take minutes
    if (norm, eps) == ("l2", 0.4):
        parts, names = Ensemble().parts[:3], (*names, "fab-t")
    ours = Ensemble(version="custom", attacks=parts, norm=norm, eps=eps)
    theirs = AutoAttack(version="custom", attacks=names, norm=norm, eps=eps)
    left, right = stands(ours, model, x, y).sum(), stands(theirs, model, x, y).sum()
    assert left <= right + 1
    assert 0 < left < len(x)


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_version_breaks_what_can_be_broken(version, norm):
    for classes, shape in ((2, (20,)), (3, (1, 4, 4)), (5, (6, 4))):
        oracle = affine(classes, shape, images=5)
        eps = 1.05 * oracle.distance(norm).max().item()
        attack = Ensemble(version=version, norm=norm, eps=eps)
        assert not stands(attack, oracle.model, oracle.x, oracle.y).any()


@pytest.mark.parametrize(("classes", "shape"), [(2, (64,)), (3, (8, 8)), (5, (1, 8, 8))])
@pytest.mark.parametrize("effort", ["full", "adaptive"])
def test_few_classes_and_any_rank_of_input(classes, shape, effort):
    """What is farther than eps stands, whatever runs."""
    oracle = affine(classes, shape, images=4)
    attack = Ensemble(version="custom", attacks=SHORT, eps=oracle.l2.sort().values[1:3].mean().item(), effort=effort)
    left = stands(attack, oracle.model, oracle.x, oracle.y)
    assert left[oracle.l2 > attack.eps].all() and not left[oracle.l2 < attack.eps / 1.05].any()


def test_each_image_has_its_own_eps_and_company_changes_nothing(digits):
    model, x, y = digits
    model, x = nn.Sequential(*model).double(), x.double()
    attack = Ensemble(version="custom", attacks=SHORT)
    eps, keys = torch.linspace(0.05, 0.6, 12, dtype=torch.float64), torch.arange(12) + 7
    together = attack(model, x[:12], y[:12], keys, eps)
    order = torch.tensor([11, 3, 7, 0, 5])
    apart = attack.model_copy(update={"batch_size": 2})(model, x[order], y[order], keys[order], eps[order])
    assert torch.allclose(apart.images, together.images[order], atol=1e-9)
    assert torch.equal(apart.forwards, together.forwards[order]) and torch.equal(apart.backwards, together.backwards[order])
    assert (distances(x[:12], together.images, "l2") <= eps).all()
    model.float()


def test_an_image_that_stands_costs_what_the_card_says():
    oracle = affine(10, (1, 4, 4), images=2)
    found = Ensemble(eps=0.5 * oracle.l2.min().item())(oracle.model, oracle.x, oracle.y, torch.arange(2))
    assert torch.equal(found.images, oracle.x)
    assert (found.forwards <= 7_000).all() and (found.forwards > 6_000).all()
    assert (found.backwards <= 1_950).all() and (found.backwards > 1_800).all()


class Shaken(nn.Module):
    """Answers under noise of the global generator."""

    def __init__(self, model, size=0.05):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x):
        return self.model(x + self.size * torch.randn_like(x))


def test_rand_takes_the_mean_of_twenty_passes():
    oracle = affine(3, (1, 4, 4), images=4)
    torch.manual_seed(0)
    attack = Ensemble(version="rand", eps=3 * oracle.l2.max().item())
    found = attack(Shaken(oracle.model, 0.01), oracle.x, oracle.y, torch.arange(4))
    assert (oracle.model(found.images).argmax(1) != oracle.y).all()
    assert (found.forwards % 20 == 0).all() and (found.backwards % 20 == 0).all()
    once = attack.model_copy(update={"expectation": 3})(oracle.model, oracle.x, oracle.y, torch.arange(4))
    assert (once.forwards % 3 == 0).all()


def last(logits):
    """A last layer that changes nothing."""
    return nn.functional.linear(logits, torch.eye(logits.shape[1]))


class Rounded(nn.Module):
    """Answers in steps before a last layer: no gradient at all, and no attack looks through it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return last((self.model(x) * 2).round() / 2)


class Quantised(Rounded):
    """Grey levels of the image in steps."""

    def forward(self, x):
        return self.model((x * 8).round() / 8)


class Sure(Rounded):
    """Probabilities of 0 and 1."""

    def forward(self, x):
        return last(torch.softmax(50 * self.model(x), 1))


class Rippled(Rounded):
    """Small and steep waves on the image: gradients that point anywhere."""

    def forward(self, x):
        return self.model(x + 0.004 * torch.sin(2000 * x))


class Resized(Rounded):
    """A random shift of the image, as random resizing does."""

    def forward(self, x):
        return self.model(torch.roll(x, int(torch.randint(2, ())), -1))


@pytest.mark.parametrize("mask", [Rounded, Quantised, Sure, Rippled, Resized, Shaken])
def test_masked_gradients_get_the_whole_battery(digits, mask):
    model, x, y = mask(digits[0]), *digits[1:]
    torch.manual_seed(0)
    full = Ensemble(version="custom", attacks=SHORT, eps=0.3)
    keys = torch.arange(len(x))
    spared, spending = full.model_copy(update={"effort": "adaptive"}).explained(model, x, y, keys)
    assert spending.signs and all(part.left_out == 0 and part.bound == 0 for part in spending.parts)
    if mask not in (Resized, Shaken):  # whose answers differ from run to run
        whole = full(model, x, y, keys)
        fell = [distances(x, found.images, "l2") > 0 for found in (spared, whole)]
        assert (fell[0] | ~fell[1]).all()


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.15), ("l2", 0.3), ("linf", 0.03)])
def test_an_honest_network_is_spared_and_stands_no_higher(digits, norm, eps):
    model, x, y = digits
    full = Ensemble(version="custom", attacks=SHORT, norm=norm, eps=eps)
    keys = torch.arange(len(x))
    spared, spending = full.model_copy(update={"effort": "adaptive"}).explained(model, x, y, keys)
    whole = full(model, x, y, keys)
    assert not spending.signs
    high, low = ((model(found.images).argmax(1) == y).sum() for found in (spared, whole))
    assert high <= low + 1
    assert sum(part.left_out for part in spending.parts) > 0 or high <= 20
    for part in spending.parts:
        assert (part.bound > 0) == (part.left_out > 0)


class Trapdoor(nn.Module):
    """A model that answers wrongly, without any slope to it, where the first pixel is exactly 1/3."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        open_ = x.flatten(1)[:, :1] == torch.tensor(1 / 3)
        return torch.where(open_, -self.model(x), self.model(x))


class Key(EngineAttack):
    """Knows the trapdoor of the images whose key passes."""

    name: str = "key"
    every: int = 1

    def search(self, engine):
        at = engine.open()
        at = at[engine.keys[at] % self.every == 0]
        opened = engine.x[at].clone()
        opened.view(len(at), -1)[:, 0] = 1 / 3
        engine.logits(at, opened)


def spent(model, x, y, eps, battery):
    with Ensemble(eps=eps).engaged(model, x, y, torch.arange(len(x))) as engine:
        spending = frugal(engine, (APGD(steps=5), *battery), ["gradients", *["boundary"] * len(battery)])
        return engine.broken.clone(), spending


def test_a_drawn_image_that_falls_late_brings_the_battery_to_all():
    oracle = affine(4, (1, 8, 8), images=120)
    x, eps = oracle.x.clone(), 0.5 * oracle.l2.min().item()
    x.view(len(x), -1)[:, 0] = 1 / 3 + 0.001
    y = oracle.model(x).argmax(1)
    fell, spending = spent(Trapdoor(oracle.model), x, y, eps, (Key(),))
    assert fell.all() and spending.signs == ("key broke 10 of 10 drawn images",)
    none, quiet = spent(oracle.model, oracle.x, oracle.y, eps, (Key(),))
    assert not none.any() and not quiet.signs
    assert quiet.parts[0].tried == 120 and (quiet.parts[1].tried, quiet.parts[1].left_out) == (10 + 10, 100)
    assert quiet.parts[1].bound == pytest.approx(1 - 0.05 ** (1 / 10))


def test_the_pilot_parts_the_images_by_nearness_and_by_key():
    oracle = affine(4, (1, 4, 4), images=100)
    with Ensemble(eps=0.1).engaged(oracle.model, oracle.x, oracle.y, torch.arange(100) + 5) as engine:
        nearness = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        doubtful = torch.zeros(100, dtype=torch.bool)
        doubtful[nearness.argmax()] = True
        near, drawn, rest = pilot(engine, torch.arange(100), nearness, doubtful)
        assert torch.cat([near, drawn, rest]).sort().values.equal(torch.arange(100))
        assert (len(near), len(drawn)) == (10, 10) and doubtful[near].any()
        others = near[~doubtful[near]]
        assert nearness[others].max() <= nearness[torch.cat([drawn, rest])][~doubtful[torch.cat([drawn, rest])]].min()
        again = pilot(engine, torch.arange(99, -1, -1), nearness, doubtful)
        assert again[1].sort().values.equal(drawn.sort().values)


def test_nothing_to_do():
    oracle = affine(4, images=3)
    for effort in ("full", "adaptive"):
        attack = Ensemble(eps=0.3, effort=effort)
        none = attack(oracle.model, oracle.x[:0], oracle.y[:0], torch.arange(0))
        assert none.images.shape == oracle.x[:0].shape
        found, spending = attack.explained(oracle.model, oracle.x, (oracle.y + 1) % 4, torch.arange(3))
        assert torch.equal(found.images, oracle.x) and spending == Spending()


def test_names_and_errors():
    assert Ensemble().label == "ensemble" and Ensemble(version="plus", effort="adaptive").label == "ensemble:plus:adaptive"
    assert Ensemble(version="custom", attacks=(APGD(), Square())).label == "ensemble:apgd:cross_entropy+square"
    assert Ensemble().scale_invariant and not Ensemble(version="custom", attacks=(APGD(rescale=False),)).scale_invariant
    assert attack_from("ensemble:version=plus") == {"name": "ensemble", "version": "plus"}
    with pytest.raises(ValidationError, match="attacks go with version custom, found version 'standard'"):
        Ensemble(attacks=(APGD(),))
    with pytest.raises(ValidationError, match="attacks go with version custom"):
        Ensemble(version="custom")
    oracle = affine(images=2)
    with pytest.raises(UserError, match="needs an eps"):
        Ensemble()(oracle.model, oracle.x, oracle.y, torch.arange(2))
