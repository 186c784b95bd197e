"""The engine of our own attacks: what it keeps, counts and leaves alone, compared with what a plain loop would."""

import pytest
import torch
from oracles import affine
from torch import nn

from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.nodes.node import UserError


def engaged(model, x, y, eps, norm="l2", **fields):
    attack = EngineAttack(norm=norm, **fields)
    return attack.engaged(model, x, y, torch.arange(len(x)), torch.as_tensor(eps, dtype=torch.float64).expand(len(x)).clone())


def beyond(oracle, factor):
    """Each image moved along its exact direction to `factor` times its exact distance (linear model, l2)."""
    weight = oracle.model[1].weight
    logits = oracle.model(oracle.x)
    gaps = (logits.gather(1, oracle.y[:, None]) - logits) / (weight[oracle.y][:, None] - weight[None]).norm(dim=2)
    nearest = gaps.scatter(1, oracle.y[:, None], torch.inf).argmin(1)
    way = weight[nearest] - weight[oracle.y]
    way = way / way.norm(dim=1, keepdim=True)
    return oracle.x + (factor * oracle.l2.float()[:, None] * way).view_as(oracle.x)


def test_every_misclassified_image_inside_is_kept_and_the_nearest_wins():
    oracle = affine(4, images=6)
    with engaged(oracle.model, oracle.x, oracle.y, torch.inf) as engine:
        every = engine.open()
        assert len(every) == 6
        for factor in (1.5, 1.1, 1.3, 0.9):
            engine.logits(every, beyond(oracle, factor))
        assert torch.allclose(engine.distance, 1.1 * oracle.l2, rtol=1e-4)
        assert torch.equal(engine.distance, distances(oracle.x, engine.images, "l2"))
        assert len(engine.open()) == 6  # the nearest one is still looked for
        assert engine.forwards.tolist() == [5] * 6 and not engine.backwards.any()


def test_an_image_asked_about_several_times_at_once_keeps_its_nearest():
    oracle = affine(4, images=3)
    with engaged(oracle.model, oracle.x, oracle.y, torch.inf) as engine:
        at = torch.arange(3).repeat(3)
        engine.logits(at, torch.cat([beyond(oracle, factor) for factor in (1.4, 1.05, 1.2)]))
        assert torch.allclose(engine.distance, 1.05 * oracle.l2, rtol=1e-4)
        assert engine.forwards.tolist() == [4] * 3


def test_a_fallen_image_leaves_and_each_has_its_own_eps():
    oracle = affine(4, images=6)
    eps = oracle.l2 * torch.tensor([2.0, 0.5] * 3)
    with engaged(oracle.model, oracle.x, oracle.y, eps) as engine:
        engine.logits(engine.open(), beyond(oracle, 1.1))
        assert engine.open().tolist() == [1, 3, 5]
        assert engine.standing(torch.tensor([0, 1])).tolist() == [False, True]
        assert torch.equal(engine.images[1::2], oracle.x[1::2])


def test_what_lies_outside_ball_or_box_is_not_kept():
    oracle = affine(4, images=4)
    far = (oracle.x + 3 * (beyond(oracle, 1.0) - oracle.x) / oracle.l2.float().view(-1, 1, 1, 1)).clone()
    with engaged(oracle.model, oracle.x, oracle.y, torch.inf) as engine:
        engine.logits(engine.open(), far)
        assert (far.flatten(1).amax(1) > 1).any()
        assert torch.equal(engine.broken, ((far >= 0) & (far <= 1)).flatten(1).all(1))
    with engaged(oracle.model, oracle.x, oracle.y, torch.inf, box="none") as engine:
        engine.logits(engine.open(), far)
        assert engine.broken.all()


def test_an_image_that_is_wrong_is_not_attacked_and_has_itself():
    oracle = affine(4, images=4)
    with engaged(oracle.model, oracle.x, (oracle.y + 1) % 4, 0.5) as engine:
        assert len(engine.open()) == 0 and engine.broken.all() and torch.equal(engine.images, oracle.x)


def test_the_gradient_is_the_models_and_nan_is_none():
    oracle = affine(4, images=5)
    with engaged(oracle.model, oracle.x, oracle.y, 1.0, batch_size=2) as engine:
        at = engine.open()[1:]
        target = torch.tensor([3, 2, 1, 0])
        found = engine.slope(at, oracle.x[at], lambda logits, rows: logits.gather(1, target[rows][:, None])[:, 0])
        assert torch.allclose(found.gradient.flatten(1), oracle.model[1].weight[target])
        assert torch.allclose(found.value, oracle.model(oracle.x[at]).gather(1, target[:, None])[:, 0])
        classes, weight = engine.others(at), oracle.model[1].weight
        gaps, slopes, wrong = engine.gaps(at, oracle.x[at], classes)
        assert torch.allclose(slopes.flatten(2), weight[engine.y[at]][:, None] - weight[classes], atol=1e-6) and not wrong.any()
        assert torch.equal(gaps, found.logits.gather(1, engine.y[at][:, None]) - found.logits.gather(1, classes))
        assert engine.forwards.tolist() == [1, 3, 3, 3, 3] and engine.backwards.tolist() == [0, 4, 4, 4, 4]
        broken = engine.slope(at, oracle.x[at], lambda logits, rows: logits[:, 0] * torch.nan)
        assert not broken.gradient.any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", ["unit", "none"])
def test_projected_images_are_inside_in_float64(norm, box):
    oracle = affine(3, (3, 16, 16), images=8)
    generator = torch.Generator().manual_seed(0)
    eps = torch.rand(8, generator=generator, dtype=torch.float64)
    with engaged(oracle.model, oracle.x, oracle.y, eps, norm, box=box) as engine:
        at = torch.arange(8)
        moved = engine.project(at, oracle.x + torch.randn(oracle.x.shape, generator=generator))
        away = distances(oracle.x, moved, norm)
        assert (away <= eps).all() and (box == "none" or (moved.min() >= 0 and moved.max() <= 1))
        assert torch.equal(engine.project(at, oracle.x), oracle.x)
        if box == "none":
            assert torch.allclose(away, eps, rtol=2e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", ["unit", "none"])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_no_rounding_takes_an_image_out_of_a_small_ball(norm, box, shift):
    """Each image at the end of its ball is inside in float64 and not a ten-thousandth, or three roundings, too short."""
    oracle = affine(3, (3, 16, 16), images=8)
    x = oracle.x + (shift if box == "none" else 0)
    generator = torch.Generator().manual_seed(0)
    for size in (0.05, 2 / 255, 1e-3, 1e-4, 1e-6, 1e-8):
        with engaged(oracle.model, x, oracle.y, size, norm, box=box) as engine:
            for _ in range(4):
                moved = engine.project(torch.arange(8), x + torch.randn(x.shape, generator=generator).sign() / 2)
                away = distances(x, moved, norm)
                assert (away <= size).all() and (away >= size * (1 - 1e-4) - 3 * engine.rounding).all()


class Rounding(nn.Module):
    def forward(self, x):
        return (x * 10).round() / 10


def test_a_layer_without_a_gradient_is_passed_straight_through():
    oracle = affine(3, images=4)
    model = nn.Sequential(Rounding(), *oracle.model)

    def slope(names):
        with engaged(model, oracle.x, oracle.y, 1.0, straight_through=names) as engine:
            return engine.slope(torch.arange(4), oracle.x, lambda logits, rows: logits[:, 0])

    assert not slope(()).gradient.any()
    passed = slope(("0",))
    assert torch.allclose(passed.gradient.flatten(1), oracle.model[1].weight[0].expand(4, -1))
    assert torch.equal(passed.logits, model(oracle.x))
    assert not model[0]._forward_hooks
    with pytest.raises(UserError, match="no submodule '7'; known: 0, 1, 2"):
        slope(("7",))
    with pytest.raises(UserError, match=r"'1' must keep its input's shape, found \(4, 16\)"):
        slope(("1",))


class Shaken(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_an_expectation_is_a_mean_of_passes_and_costs_as_many():
    oracle = affine(3, images=4)
    model = nn.Sequential(*oracle.model, Shaken())
    torch.manual_seed(0)
    with engaged(model, oracle.x, oracle.y, 1.0, expectation=400) as engine:
        found = engine.slope(torch.arange(4), oracle.x, lambda logits, rows: logits[:, 0])
        assert torch.allclose(found.logits, oracle.model(oracle.x), atol=0.25)
        assert engine.forwards.tolist() == [800] * 4 and engine.backwards.tolist() == [400] * 4


def test_a_misclassification_in_the_last_bits_alone_does_not_end_an_attack():
    """The model's answers in another batch differ by as much: the image would count as survived without the rest of the attack."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), torch.tensor([[0.5], [0.5]])
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]])), model[1].bias.copy_(torch.tensor([-0.4, 0.5]))
    with engaged(model, x, torch.tensor([0, 0]), 0.4) as engine:
        boundary = 0.45
        engine.logits(torch.arange(2), torch.tensor([[boundary - 1e-8], [boundary - 1e-3]]))
        assert engine.standing(torch.arange(2)).tolist() == [True, False]
