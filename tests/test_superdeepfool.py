"""SuperDeepFool, and the linearisation it and its like step by, against brute force and closed forms."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import affine, bent
from scipy.optimize import linprog
from torch import nn

from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.hyperplane import distance_to_plane, onto_plane
from robustbench_rkhs.attacks.linearised import nearest_classes
from robustbench_rkhs.attacks.objective import likeliest_classes
from robustbench_rkhs.attacks.superdeepfool import SuperDeepFool


def plane(seed, size=6, box="unit"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, size, generator=generator, dtype=torch.float64)
    x[0, :3] = torch.tensor([0.0, 1.0, 0.0])
    gradient = torch.randn(5, size, generator=generator, dtype=torch.float64)
    gradient[1, 2:4] = 0
    gap = torch.randn(5, generator=generator, dtype=torch.float64)
    return x, gap, gradient


def most(x, gap, gradient):
    """As far as the gap can be lowered, or raised, in the box."""
    slope = gradient * gap.sign()[:, None]
    return (slope.abs() * torch.where(slope > 0, x, 1 - x)).sum(1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_the_linf_step_onto_a_plane_is_the_linear_programs(seed):
    """min t over steps d in the box with |d_i| <= t and <g, d> = -gap."""
    x, gap, gradient = plane(seed)
    step = onto_plane(x, gap, gradient, "linf", "unit")
    for i in range(len(x)):
        if gap[i].abs() >= most(x, gap, gradient)[i]:
            continue
        size = x.shape[1]
        eye = torch.eye(size, dtype=torch.float64)
        ones = torch.ones(size, 1, dtype=torch.float64)
        above = torch.cat([torch.cat([eye, -ones], 1), torch.cat([-eye, -ones], 1)])
        equal = torch.cat([gradient[i], torch.zeros(1, dtype=torch.float64)])[None]
        bounds = [(-float(v), 1 - float(v)) for v in x[i]] + [(0, None)]
        best = linprog([0] * size + [1], above.numpy(), [0] * 2 * size, equal.numpy(), [-float(gap[i])], bounds)
        assert step[i].abs().max() == pytest.approx(best.fun, rel=1e-6, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["l2", "linf"]), st.sampled_from(["unit", "none"]))
def test_the_step_lands_on_the_plane_in_the_box_and_nothing_there_is_nearer(seed, norm, box):
    """Nearer in l2: the optimality conditions of the projection. In any norm: no shorter than without the box."""
    x, gap, gradient = plane(seed)
    step = onto_plane(x, gap, gradient, norm, box)
    can = torch.ones(5, dtype=torch.bool) if box == "none" else gap.abs() < most(x, gap, gradient)
    assert torch.allclose(gap[can] + (gradient * step).sum(1)[can], torch.zeros(1, dtype=torch.float64), atol=1e-9)
    if box == "unit":
        assert (x + step >= -1e-12).all() and (x + step <= 1 + 1e-12).all()
        assert torch.allclose(-(gradient * step).sum(1)[~can], (gap.sign() * most(x, gap, gradient))[~can])
    length = step.norm(p=2 if norm == "l2" else torch.inf, dim=1)
    far = distance_to_plane(gap, gradient, norm)
    assert (length[can] >= far[can] * (1 - 1e-9)).all()
    if box == "none":
        assert torch.allclose(length, far)
    if norm == "l2" and box == "unit":  # a multiple of the gradient wherever the box does not hold a pixel
        free = (x + step > 1e-9) & (x + step < 1 - 1e-9) & (gradient != 0) & can[:, None]
        ratio = torch.where(free, -step / torch.where(gradient == 0, 1, gradient), torch.nan)
        spread = ratio.nan_to_num(nan=-torch.inf).amax(1) - ratio.nan_to_num(nan=torch.inf).amin(1)
        assert (spread[free.any(1)] < 1e-9).all()


def test_no_slope_is_no_step_and_infinitely_far():
    x, gap, gradient = plane(0)
    for norm in ("l2", "linf"):
        for box in ("unit", "none"):
            assert not onto_plane(x, gap, 0 * gradient, norm, box).any()
        assert distance_to_plane(gap, 0 * gradient, norm).isinf().all()
        tiny, usual = (distance_to_plane(gap * s, gradient * s, norm) for s in (1e-300, 1))
        assert torch.allclose(tiny, usual)


def test_likeliest_and_nearest_classes():
    oracle = affine(7, images=6)
    logits = oracle.model(oracle.x).detach()
    order = likeliest_classes(logits, oracle.y, 10)
    assert order.shape == (6, 6) and (order != oracle.y[:, None]).all()
    assert (logits.gather(1, order).diff(dim=1) <= 0).all() and torch.equal(likeliest_classes(logits, oracle.y, 2), order[:, :2])
    keys = torch.arange(6)
    with EngineAttack().engaged(oracle.model, oracle.x, oracle.y, keys, torch.full((6,), torch.inf).double()) as engine:
        near = nearest_classes(engine, torch.tensor([1, 4]), order[[1, 4]], 3)
        assert near.at.tolist() == [1, 1, 1, 4, 4, 4]
        assert torch.allclose(near.distance[::3].double(), oracle.l2[[1, 4]], rtol=1e-5)
        weight = oracle.model[1].weight
        assert torch.allclose(near.gradient.flatten(1), weight[oracle.y[near.at]] - weight[near.classes], atol=1e-6)
        few = nearest_classes(engine, torch.tensor([0]), order[[0], :2], 1)
        assert few.classes[0] in order[0, :2]
        assert engine.forwards.tolist() == [2, 2, 1, 1, 2, 1] and engine.backwards.tolist() == [2, 6, 0, 0, 6, 0]


def boxed(norm, seed=0):
    """Linear, two classes, with pixels at 0 and 1: the exact distance is that of the plane in the box."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.rand(20, 1, 3, 4, generator=generator, dtype=torch.float64).mul(2).sub(0.5).clamp(0, 1)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 12, generator=generator))
        model[1].bias.copy_(-model[1].weight @ torch.full((12,), 0.5, dtype=torch.float64))
        logits = model(x)
    y = logits.argmax(1)
    gap = logits.amax(1) - logits.amin(1)
    gradient = (model[1].weight[y] - model[1].weight[1 - y]).view_as(x).detach()
    exact = distances(x, x + onto_plane(x, gap, gradient, norm, "unit"), norm)
    free = distance_to_plane(gap, gradient, norm)
    assert (exact > 1.01 * free).any()
    return model, x, y, exact


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_box_is_part_of_the_step(norm):
    model, x, y, exact = boxed(norm)
    attacked = SuperDeepFool(norm=norm)(model, x, y, torch.arange(20))
    found = distances(x, attacked.images, norm)
    assert (model(attacked.images).argmax(1) != y).all()
    assert (found <= 1.002 * exact).all() and (found >= exact * (1 - 1e-9)).all()


def network(classes=4):
    model = bent(classes).eval().double()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_image_alone_in_another_order_or_in_small_batches_gets_the_same(norm):
    model, x, y = network()
    attack, keys = SuperDeepFool(norm=norm), torch.arange(8)
    together = attack(model, x, y, keys)
    assert (distances(x, together.images, norm) > 0).all()
    order = torch.tensor([5, 2, 7])
    other = attack.model_copy(update={"batch_size": 2})(model, x[order], y[order], keys[order])
    torch.testing.assert_close(other.images, together.images[order], atol=1e-9, rtol=0)
    assert torch.equal(other.forwards, together.forwards[order]) and torch.equal(other.backwards, together.backwards[order])
    alone = attack(model, x[2:3], y[2:3], keys[2:3])
    torch.testing.assert_close(alone.images, together.images[2:3], atol=1e-9, rtol=0)


def test_a_finite_eps_ends_an_image_when_it_fell_and_leaves_the_others():
    model, x, y = network()
    free = SuperDeepFool()(model, x, y, torch.arange(8))
    found = distances(x, free.images, "l2")
    eps = torch.where(torch.arange(8) % 2 == 0, 2 * found, 0.5 * found)
    tight = SuperDeepFool()(model, x, y, torch.arange(8), eps)
    away = distances(x, tight.images, "l2")
    assert (away[::2] > 0).all() and (away[::2] <= eps[::2]).all() and (tight.forwards[::2] < free.forwards[::2]).all()
    assert torch.equal(tight.images[1::2], x[1::2]) and (tight.forwards[1::2] > 4).all()
    none = SuperDeepFool()(model, x, y, torch.arange(8), torch.zeros(8, dtype=torch.float64))
    assert torch.equal(none.images, x) and none.forwards.tolist() == [1] * 8


def test_what_it_costs():
    model, x, y = network()
    attack = SuperDeepFool(steps=6, targets=2, candidates=2, line=4)
    attacked = attack(model, x, y, torch.arange(8))
    assert (attacked.forwards <= 1 + 1 + 2 * 6 + 4).all() and (attacked.backwards <= 3 + 2 * 6).all()
    assert SuperDeepFool.minimal_norm and attack.aimed(norm="linf", eps=0.3, seed=1).eps is None


def test_degenerate_models_and_views():
    oracle = affine(3, (3, 6, 4), images=6)
    attack = SuperDeepFool()
    turned = oracle.x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    same = attack(oracle.model, turned, oracle.y, torch.arange(6))
    torch.testing.assert_close(same.images, attack(oracle.model, oracle.x, oracle.y, torch.arange(6)).images)
    one = nn.Sequential(nn.Flatten(), nn.Linear(72, 1))
    assert torch.equal(attack(one, oracle.x, torch.zeros_like(oracle.y), torch.arange(6)).images, oracle.x)
    double = copy.deepcopy(oracle.model).double()
    assert attack(double, oracle.x.double(), oracle.y, torch.arange(6)).images.dtype == torch.float64
