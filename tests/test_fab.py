"""FAB beyond the conformance lines: what it costs, whom it leaves alone, and the library it is measured against."""

import copy

import pytest
import torch
from oracles import affine, bent, trained_digits
from torch import nn

from robustbench_rkhs.attacks.autoattack import AutoAttack
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.evaluation.recipe import attack_from

BOTH = pytest.mark.parametrize("norm", ["l2", "linf"])
KINDS = pytest.mark.parametrize(
    "fields",
    [{}, {"targets": 2, "parallel": 1}, {"targets": 3}, {"targets": 1, "relook": True}],
    ids=["all", "2", "3 at once", "relook"],
)


def bounded(attack, model, x, y, eps, keys=None):
    """The engine after a search with a budget for each image, as an ensemble calls it."""
    eps = torch.as_tensor(eps, dtype=torch.float64).expand(len(x)).clone()
    with attack.engaged(model, x, y, torch.arange(len(x)) if keys is None else keys, eps) as engine:
        attack.search(engine)
    return engine


def curved(classes=4, images=6, shape=(1, 6, 6)):
    """A float64 network that bends, images in the box, and its own answers as labels."""
    model = bent(classes, shape, seed=1).double().eval()
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@BOTH
@KINDS
def test_each_image_has_its_own_eps_and_a_fallen_one_costs_no_more(norm, fields):
    """One step breaks an affine model (eta crosses the boundary); those just out of reach pay for every step of every run."""
    oracle = affine(4, images=8)
    attack = FAB(norm=norm, steps=10, **fields)
    eps = oracle.distance(norm) * torch.tensor([1.2, 0.95] * 4)
    engine = bounded(attack, oracle.model, oracle.x, oracle.y, eps)
    assert engine.broken.tolist() == [True, False] * 4
    assert (engine.distance[::2] <= eps[::2]).all() and torch.equal(engine.images[1::2], oracle.x[1::2])
    assert engine.forwards[::2].max() < engine.forwards[1::2].min()
    if not fields:
        assert engine.forwards[1::2].tolist() == [1 + 10 + 1] * 4 and engine.backwards[1::2].tolist() == [30] * 4


def test_a_survivor_costs_a_forward_and_a_backward_pass_a_step():
    """And with `relook` a forward pass more where it was drawn back, which is at every step here but the first.

    The target is the nearest of three: a forward pass and a backward pass for each, once.
    """
    oracle = affine(4, images=5)
    for fields, forwards in (({}, 2 + 10 + 1), ({"relook": True}, 2 + 10 + 1 + 9)):
        engine = bounded(FAB(steps=10, targets=1, **fields), oracle.model, oracle.x, oracle.y, 0.9 * oracle.l2)
        assert (engine.forwards <= forwards).all() and engine.forwards.max() == forwards
        assert (engine.backwards <= 3 + 11).all()


@BOTH
@KINDS
def test_an_image_gets_the_same_alone_in_another_order_and_with_other_neighbours(norm, fields):
    model, x, y = curved()
    attack = FAB(norm=norm, steps=8, restarts=2, batch_size=4, **fields)
    keys = torch.arange(10, 16)
    together = attack(model, x, y, keys)
    order = torch.tensor([4, 0, 5, 2])
    shuffled = FAB(norm=norm, steps=8, restarts=2, batch_size=3, **fields)(model, x[order], y[order], keys[order])
    alone = attack(model, x[[2]], y[[2]], keys[[2]])
    assert torch.allclose(shuffled.images, together.images[order], atol=1e-9, rtol=0)
    assert torch.allclose(alone.images, together.images[[2]], atol=1e-9, rtol=0)
    assert torch.equal(shuffled.forwards, together.forwards[order]) and torch.equal(alone.backwards, together.backwards[[2]])


@BOTH
def test_a_further_start_is_drawn_by_key_and_restart_at_half_the_distance_known(norm):
    model, x, y = curved()
    attack, at = FAB(norm=norm, seed=4), torch.arange(6)
    with attack.engaged(model, x, y, at + 10, torch.full((6,), 0.02, dtype=torch.float64)) as engine:
        first, second, third = (attack._start(engine, at, restart) for restart in range(3))
        assert torch.equal(first, x) and torch.equal(second[[5, 2]], attack._start(engine, at[[5, 2]], 1))
        away = distances(x, second, norm)
        assert (away > 0).all() and (away <= 0.01 + 1e-12).all() and (second != third).flatten(1).any(1).all()
        engine.keys = at
        assert (attack._start(engine, at, 1) != second).flatten(1).any(1).all()


@BOTH
@pytest.mark.parametrize("shape", [(2,), (7,), (3, 4, 5)])
@pytest.mark.parametrize("classes", [2, 3])
def test_any_shape_and_few_classes_down_to_the_exact_distance(norm, shape, classes):
    """Boundary and box are linear here, so that the final secants leave a thousandth."""
    oracle = affine(classes, shape, seed=2, images=5)
    for fields in ({}, {"targets": 9}):
        attacked = FAB(norm=norm, steps=8, **fields)(oracle.model, oracle.x, oracle.y, torch.arange(5))
        found = distances(oracle.x, attacked.images, norm)
        assert (found <= 1.001 * oracle.distance(norm) + 1e-6).all() and (found >= oracle.distance(norm) * (1 - 1e-4)).all()


def test_two_classes_need_one_gradient():
    oracle = affine(2, images=4)
    attacked = FAB(steps=5, closer=0)(oracle.model, oracle.x, oracle.y, torch.arange(4))
    assert attacked.backwards.tolist() == [5] * 4 and attacked.forwards.tolist() == [1 + 5 + 1 + 3] * 4


def test_one_class_has_no_boundary():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(FAB()(model, x, torch.zeros(2, dtype=torch.int64), torch.arange(2)).images, x)


@BOTH
def test_the_box_is_used_where_it_binds(norm):
    """Black images whose boundary lies upwards in some pixels only: the shortest way inside the box, by the closed form."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1.0, 2.0, -5.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([1.5, 0.0]))
    x = torch.zeros(1, 1, 2, 2)
    exact = 1.5 / 5**0.5 if norm == "l2" else 0.5
    attacked = FAB(norm=norm, steps=10)(model, x, torch.zeros(1, dtype=torch.int64), torch.arange(1))
    assert distances(x, attacked.images, norm).item() == pytest.approx(exact, rel=1e-3)
    free = FAB(norm=norm, steps=10, box="none")(model, x, torch.zeros(1, dtype=torch.int64), torch.arange(1))
    assert distances(x, free.images, norm).item() == pytest.approx(1.5 / 30**0.5 if norm == "l2" else 1.5 / 8, rel=1e-3)


@BOTH
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_logits_changes_nothing(norm, scale):
    model, x, y = curved()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[-1].weight.mul_(scale), scaled[-1].bias.mul_(scale)
    for fields in ({}, {"targets": 3}):
        plain, other = (FAB(norm=norm, steps=8, **fields)(net, x, y, torch.arange(6)) for net in (model, scaled))
        assert torch.allclose(plain.images, other.images, atol=1e-7) and distances(x, plain.images, norm).max() > 0


class Dead(nn.Module):
    """Flat but for a corner where it is something else: nothing to follow."""

    def forward(self, x):
        answer = (x.flatten(1).amin(1) > 0.99).to(x)
        return torch.stack([1 - answer, answer, 0 * answer], 1) + 0 * x.flatten(1).sum(1, keepdim=True)


@KINDS
def test_an_image_that_no_gradient_moves_stops_costing(fields):
    attacked = FAB(steps=50, rescues=0, **fields)(
        Dead(), torch.full((2, 1, 3, 3), 0.5), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    )
    assert attacked.images.eq(0.5).all() and attacked.forwards.max() <= 1 + 3


class Sick(nn.Module):
    """Linear up to 0.3 from grey, NaN beyond."""

    def forward(self, x):
        lean = (x - 0.5).flatten(1).sum(1)
        far = (x - 0.5).flatten(1).abs().amax(1) > 0.3
        return torch.stack([1 - lean, lean], 1).masked_fill(far[:, None], torch.nan)


@BOTH
@KINDS
def test_answers_that_are_nan_are_errors_of_the_model_and_no_nan_comes_back(norm, fields):
    """The boundary, at 0.5 more in the sum of four pixels, is nearer than the NaN."""
    x = torch.full((2, 1, 2, 2), 0.5)
    attacked = FAB(norm=norm, steps=12, **fields)(Sick(), x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert attacked.images.isfinite().all()
    assert distances(x, attacked.images, norm).max() <= 1.01 * (0.25 if norm == "l2" else 0.125)


def test_by_name():
    assert attack_from("fab:targets=9,norm=linf") == {"name": "fab", "targets": 9, "norm": "linf"}
    assert FAB().label == "fab" and FAB(targets=2).label == "fab:targeted"
    assert FAB(eps=0.3).aimed(norm="linf", eps=0.1, seed=3) == FAB(norm="linf", seed=3)


@pytest.fixture(scope="module")
def few_digits():
    """Five classes and 40 images: the library runs its targets one by one."""
    return trained_digits(5, 40)


@pytest.mark.parametrize(("norm", "eps"), [("l2", (0.48, 0.6)), ("linf", (0.09, 0.11))])
def test_no_weaker_than_the_library_by_more_than_one_image_of_forty(norm, eps, few_digits):
    """Its FAB-T at two budgets of which neither breaks all or none; ours within them for less, and once without one."""
    model, x, y = few_digits
    nearest = distances(x, FAB(norm=norm, targets=4)(model, x, y, torch.arange(40)).images, norm)
    for budget in eps:
        theirs = AutoAttack(version="custom", attacks=("fab-t",), norm=norm, eps=budget)(model, x, y, torch.arange(40))
        robust = int((model(theirs.images).argmax(1) == y).sum())
        ours = bounded(FAB(norm=norm, targets=4), model, x, y, budget)
        assert 4 < robust < 36
        assert int((~ours.broken).sum()) <= robust + 1 and int((nearest > budget).sum()) <= robust + 1
        assert ours.forwards.sum() + ours.backwards.sum() < 0.8 * (theirs.forwards.sum() + theirs.backwards.sum())


@BOTH
def test_distances_are_the_librarys_to_two_percent(norm, few_digits):
    """Its FAB with so large a budget that it minimises."""
    model, x, y = few_digits
    library = AutoAttack(version="custom", attacks=("fab",), norm=norm, eps=8.0 if norm == "l2" else 1.0)
    theirs = distances(x, library(model, x, y, torch.arange(40)).images, norm)
    for fields in ({}, {"targets": 9}):
        ours = distances(x, FAB(norm=norm, **fields)(model, x, y, torch.arange(40)).images, norm)
        assert ours.median() <= 1.02 * theirs.median() and ours.isfinite().all()
