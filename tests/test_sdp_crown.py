"""Bounds of balls and intervals together: the inequality by brute force, every ball and bound against points and attacks."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import affine as affine_oracle
from test_lowered import FIRST, LAYERS, classifier
from test_relaxations import NETWORKS, images, network, samples, worst
from torch import nn

from robustbench_rkhs.bounds import opened
from robustbench_rkhs.certificates import CrownCertificate, MarginCertificate, SdpCrownCertificate
from robustbench_rkhs.certificates.reach import reach
from robustbench_rkhs.certificates.relaxation import twin
from robustbench_rkhs.layers import Concatenate, Normalize
from robustbench_rkhs.relaxations import ball
from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.balls import ball_trace, balls_of
from robustbench_rkhs.relaxations.full_crown import proved_trace
from robustbench_rkhs.relaxations.lagrangian import Ball, Tilt, lagrangian
from robustbench_rkhs.relaxations.linear_bounds import Lines, margin_rows
from robustbench_rkhs.relaxations.rows import Rows, balls_at, doubled, indexed, kinks_of, started, valued
from robustbench_rkhs.relaxations.tightened import Tightened
from robustbench_rkhs.relaxations.unit_box import drop

F64 = torch.float64


def joined():
    torch.manual_seed(0)
    parts = Concatenate([nn.Identity(), nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU())])
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), parts, nn.Conv2d(5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))


CHOSEN = ("mlp", "convolutions", "batchnorm", "residual", "max-pool", "sorted", "smooth", "concatenation")
INSIDE = [name for name in LAYERS if name in FIRST.values() and hasattr(LAYERS[name][0](), "weight")]
MODELS = {name: lambda name=name: network(name, 1) for name in NETWORKS} | {"concatenation": lambda: joined().double().eval()}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), left=st.sampled_from([0.0, 0.2, 1.0]), whole=st.booleans(), size=st.sampled_from([1e-3, 1.0, 1e3])
)
def test_the_inequality_holds_at_every_point_and_is_tight_coordinate_by_coordinate(seed, left, whole, size):
    """c'f(x) against r'x + constant at points of ball and interval, and each part against its minimum over a grid."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
    center, c, rho = draw(1, 5) * size, draw(1, 1, 5), size * torch.rand(1, generator=generator, dtype=F64) * 3 + 1e-9
    reach_ = rho * (0.3 + torch.rand(1, 5, generator=generator, dtype=F64))
    low, high = (center - torch.inf, center + torch.inf) if whole else (center - reach_, center + reach_ / 2)
    tilt = Tilt(draw(1, 1, 5) * 2, draw(1, 1).exp() / size)
    found = lagrangian(c, left, low, high, Ball(center, rho), tilt, True)
    noise = draw(4000, 5)
    points = center + rho * noise / noise.norm(dim=1, keepdim=True) * torch.rand(4000, 1, generator=generator, dtype=F64) ** 0.2
    points = torch.minimum(torch.maximum(points, low), high)  # the interval holds the centre: clipping stays in the ball
    value = (c[0] * torch.where(points > 0, points, left * points) - found.slopes[0] * points).sum(1)
    bound = (found.parts.sum(2) - found.balls - found.errors).item()
    assert bound <= value.min().item() + 1e-12 * size * abs(c).sum().item()
    grid = torch.minimum(torch.maximum(center + 12 * rho * torch.linspace(-1, 1, 40001, dtype=F64)[:, None], low), high)
    m = tilt.multiplier.item()
    parts = c[0] * torch.where(grid > 0, grid, left * grid) - found.slopes[0] * grid + m / 2 * (grid - center).square()
    assert (found.parts[0, 0] <= parts.amin(0) + 1e-12 * size).all()
    inside = (found.parts[0, 0] - parts.amin(0)).abs() <= 1e-5 * size * (1 + parts.amax(0).abs() + m * size)
    beyond = tilt.slope[0, 0].abs().amax() * c.abs().amax() / m > 10 * rho.item()  # the minimum is not on the grid
    crosses = (low <= 0) & (high >= 0)  # else the bent point 0 lies outside and may only lower the part
    assert bool(beyond) or inside[crosses[0]].all()


@pytest.mark.parametrize("name", MODELS)
def test_every_ball_and_region_holds_what_the_network_computes(name):
    model, x = MODELS[name](), images(2)
    for eps in (0.5,):
        region = ball(x, eps, "l2", "none")
        plain = proved_trace(model, region, False)
        balls = balls_of(model, x, torch.full((2,), eps, dtype=F64), reach(model, (1, 6, 6), plain))
        found = ball_trace(model, region, balls)
        tight = ball_trace(model, region, balls, Tightened(balls, 100, Search(3)))
        assert name == "reflected" or all(one.radius.isfinite().all() for one in balls.values())
        for point in samples(x, eps * (1 - 1e-9), "l2", "none", count=4):
            _held(found.steps, point, balls)
            _held(tight.steps, point, balls)
        for one, other in zip(found.steps, plain.steps, strict=True):
            assert (one.before.radius <= other.before.radius * (1 + 1e-9) + 1e-12).all()  # never wider than intervals alone


def _held(steps, z, balls):
    for step in steps:
        assert ((z - balls[step.path].center).flatten(1).norm(dim=1) <= balls[step.path].radius).all(), step.path
        assert (z >= step.before.lower).all() and (z <= step.before.upper).all(), step.path
        for branch in step.branches:
            _held(branch, z, balls)
        z = step.module(z).detach()


@pytest.mark.parametrize("name", INSIDE)
def test_balls_inside_of_our_own_layers_hold_too(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    model, x = classifier(build, shape, 1), torch.rand(1, *shape, dtype=F64)
    double, region = twin(opened(model, shape), torch.device("cpu")), ball(x, 0.3, "l2", "none")
    plain = proved_trace(double, region, False)
    balls = balls_of(double, x, torch.full((1,), 0.3, dtype=F64), reach(opened(model, shape), shape, plain))
    assert any(one.radius.isfinite().all() for one in balls.values())
    steps = ball_trace(double, region, balls).steps
    ways = torch.randn(20, *shape, dtype=F64)
    for way in ways * (0.3 - 1e-9) / ways.flatten(1).norm(dim=1).view(-1, *[1] * len(shape)):
        _held(steps, x + way, balls)


@pytest.mark.parametrize("name, norm", [*((name, "l2") for name in CHOSEN), ("residual", "linf"), ("leaky", "linf")])
def test_no_radius_is_reached_by_an_attack_or_lower_than_crowns(name, norm):
    model, x = MODELS[name](), images(2)
    y, keys, asked = model(x).argmax(1), torch.arange(2), (0.01, 0.05, 0.15)
    found = SdpCrownCertificate(norm=norm, steps=20, search=False)(model, x, y, keys, asked).radius
    plain = CrownCertificate(norm=norm, search=False)(model, x, y, keys, asked).radius
    assert (found > 0).all() and (found >= 0.999 * plain).all()
    for index in range(2):
        one = slice(index, index + 1)
        lowest = worst(model, x[one], y[one], float(found[index]), norm, "none", steps=4)
        assert (lowest.scatter(1, y[one, None], torch.inf) > 0).all()


def rows_of(model, x, y, eps, pairs):
    """The rows of these pairs (place, class) over l2 balls."""
    region = ball(x, eps, "l2", "none")
    sample = proved_trace(model, region, False)
    balls = balls_of(model, x, torch.full((len(x),), eps, dtype=F64), reach(model, tuple(x.shape[1:]), sample))
    found = ball_trace(model, region, balls)
    place, other = pairs.T
    lines = margin_rows(y, found)
    lines = Lines(lines.slopes[place, other][:, None], lines.offsets[place, other][:, None])
    return Rows(indexed(found.steps, place), lines, balls_at(balls, found.steps, place), place)


@pytest.mark.parametrize("name", ["mlp", "leaky", "convolutions", "residual", "residual, shortened", "max-pool", "concatenation"])
def test_any_slopes_and_multipliers_are_sound(name):
    """Drawn at random and optimised: below the margin of every point of the ball."""
    model, x = MODELS[name](), images(3)
    y = model(x).argmax(1)
    pairs = torch.tensor([(a, b) for a in range(3) for b in range(model(x).shape[1]) if b != int(y[a])])
    lowest = worst(model, x, y, 0.4, "l2", "none", steps=10)[tuple(pairs.T)]
    rows = rows_of(model, x, y, 0.4, pairs)
    first = started(rows)
    best = optimised(rows, first, torch.full((len(pairs),), torch.inf, dtype=F64), Search(60))
    before, after = valued(rows, doubled(first), True)[0], valued(rows, doubled(best), True)[0]
    assert (after >= before - 1e-6).all() and (after <= lowest).all() and (before <= lowest).all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = {
            path: Tilt(
                tilt.slope + torch.randn(tilt.slope.shape, generator=generator, dtype=F64),
                tilt.multiplier * torch.randn(tilt.multiplier.shape, generator=generator, dtype=F64).exp(),
            )
            for path, tilt in first.items()
        }
        value, share = valued(rows, drawn, True)
        assert (value <= lowest).all() and (share[value > 0] >= 1 - 1e-9).all()
        single = {path: Tilt(tilt.slope.float(), tilt.multiplier.float()) for path, tilt in drawn.items()}
        torch.testing.assert_close(valued(rows.to(torch.float32), single, False)[0].double(), value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_bounds_are_below_exact_fractions(seed):
    """Weights of very different sizes, sums that cancel: the margin at the image in exact arithmetic."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(0.25), nn.Linear(4, 2)).double()
    for parameter in model.parameters():
        parameter.data *= 10 ** (4 * torch.rand_like(parameter))
    x = torch.rand(1, 3, dtype=F64)
    values = [Fraction(value) for value in x[0].tolist()]
    for layer in model:
        if isinstance(layer, nn.Linear):
            weights = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            values = [sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b)) for row, b in weights]
        else:
            left = Fraction(1, 4) if isinstance(layer, nn.LeakyReLU) else Fraction(0)
            values = [value if value > 0 else left * value for value in values]
    for label, truth in ((0, values[0] - values[1]), (1, values[1] - values[0])):
        for eps in (1e-12, 1e-6):
            rows = rows_of(model, x, torch.tensor([label]), eps, torch.tensor([[0, 1 - label]]))
            bound = valued(rows, started(rows), True)[0].item()
            assert Fraction(bound) <= truth and float(truth) - bound < 1e-6 * 1e13


def test_the_radius_of_an_affine_model_is_exact_and_never_above():
    truth = affine_oracle(shape=(1, 4, 4), images=6)
    radius = SdpCrownCertificate()(truth.model.double(), truth.x, truth.y, torch.arange(6), (0.1,)).radius
    torch.testing.assert_close(radius, truth.distance("l2"), rtol=1e-9, atol=0)
    assert (radius < truth.distance("l2")).all()


def trained(seed=0):
    """A network of two hidden layers that tells eight noisy patterns apart."""
    torch.manual_seed(seed)
    patterns = torch.rand(8, 20)
    model = nn.Sequential(Normalize([0.4], [0.5]), nn.Flatten(), nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
    model = nn.Sequential(*model, nn.Linear(40, 8))
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        y = torch.randint(8, (64,))
        x = patterns[y].view(-1, 1, 4, 5) + 0.1 * torch.randn(64, 1, 4, 5)
        loss = nn.functional.cross_entropy(model(x), y)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval(), patterns.view(-1, 1, 4, 5), torch.arange(8)


def test_slopes_that_are_free_where_the_sign_is_known_prove_more():
    """The regression that the method rests on: with those slopes frozen at 0 or 1, bounds are looser."""
    model, x, y = trained()
    model = model.double()
    x = x.double()
    pairs = torch.tensor([(a, b) for a in range(8) for b in range(8) if b != a])
    rows = rows_of(model, x, y, 0.35, pairs)
    first = started(rows)
    free = optimised(rows, first, torch.full((len(pairs),), torch.inf, dtype=F64), Search(100))
    frozen = {}
    for step in kinks_of(rows.steps):
        known = (step.before.lower >= 0) | (step.before.upper <= 0)
        tilt = free[step.path]
        frozen[step.path] = Tilt(torch.where(known[:, None], first[step.path].slope, tilt.slope), tilt.multiplier)
        assert known.any()
    loose, tight = valued(rows, doubled(frozen), True)[0], valued(rows, doubled(free), True)[0]
    assert (tight > loose).float().mean() > 0.9


def test_it_proves_more_than_margin_and_crown_and_warm_starts_lose_nothing():
    model, x, y = trained()
    keys, asked = torch.arange(4), (0.2, 0.35, 0.45)
    x, y = x[:4], y[:4]
    found = SdpCrownCertificate(search=False, intervals=0)(model, x, y, keys, asked).radius
    for other in (MarginCertificate()(model, x, y, keys, ()), CrownCertificate(search=False)(model, x, y, keys, asked)):
        assert sum((found >= eps).sum() for eps in asked) > sum((other.radius >= eps).sum() for eps in asked)
    alone = SdpCrownCertificate(search=False, intervals=0)(model, x, y, keys, asked[-1:]).radius
    assert ((found >= asked[-1]) == (alone >= asked[-1])).all()
    further = SdpCrownCertificate(intervals=0, tolerance=0.2, steps=40)(model, x, y, keys, asked[:1]).radius
    assert (further > asked[0]).all() and (SdpCrownCertificate()(model, x, (y + 1) % 8, keys, (0.1,)).radius == 0).all()


def test_images_one_by_one_and_together_are_proved_alike():
    model, x, y = trained(1)
    whole = SdpCrownCertificate(search=False, intervals=0)(model, x, y, torch.arange(8), (0.3,)).radius
    method, key = SdpCrownCertificate(search=False, intervals=0), torch.arange(1)
    apart = [method(model, x[i : i + 1], y[i : i + 1], key, (0.3,)).radius for i in range(8)]
    assert ((whole >= 0.3) == (torch.cat(apart) >= 0.3)).all()


@pytest.mark.parametrize("inside", [True, False])
def test_the_pixel_box_cuts_the_ball_and_any_point_of_both_lies_above_the_bound(inside):
    torch.manual_seed(0)
    slopes, center = torch.randn(3, 4, 30, dtype=F64), torch.rand(3, 30, dtype=F64).round(decimals=1)
    center = center if inside else center * 1.5 - 0.2
    for eps in (1e-6, 0.3, 2.0, 50.0):
        found = drop(slopes, center, torch.full((3,), eps, dtype=F64), True)
        plain = eps * slopes.norm(dim=2)
        low, high = (-center).clamp_max(0)[:, None], (1 - center).clamp_min(0)[:, None]
        corner = torch.where(slopes > 0, low, high)
        assert (found <= plain * (1 + 1e-9)).all() and (found <= -(slopes * corner).sum(2) + 1e-6).all()
        d = torch.zeros_like(slopes)
        for _ in range(300):  # projected gradient onto the cut ball, by alternating projections
            d = d - 0.05 * eps * slopes / slopes.norm(dim=2, keepdim=True)
            for _ in range(20):
                d = torch.minimum(torch.maximum(d, low), high)
                d = d * (eps / d.norm(dim=2, keepdim=True).clamp_min(eps))
        reached = -(slopes * d).sum(2)
        assert (reached <= found).all()
        if eps < 50:
            assert (found <= reached * 1.05 + 1e-9).all()  # and it is tight


def test_what_only_leaving_the_box_would_change_is_proved_within_it():
    model = nn.Linear(2, 2).double()
    model.weight.data = torch.tensor([[-1.0, 0.0], [0.0, 0.0]], dtype=F64)
    model.bias.data = torch.tensor([1.2, 0.0], dtype=F64)
    x, y, keys = torch.tensor([[0.9, 0.5]], dtype=F64), torch.tensor([0]), torch.arange(1)
    radius = {box: SdpCrownCertificate(box=box, search=False)(model, x, y, keys, (0.2, 0.5)).radius for box in ("none", "unit")}
    assert 0.299 < radius["none"] <= 0.3 and radius["unit"] >= 0.5 * (1 - 1e-12)


def test_no_attack_in_the_box_reaches_what_is_proved_within_it():
    model, x, y = trained(2)
    x = x.round(decimals=1).clamp(0, 1) * (x > 0.3)  # many pixels at an end
    y = model(x).argmax(1)
    kinds = {box: SdpCrownCertificate(box=box, tolerance=0.05, steps=20, intervals=0) for box in ("none", "unit")}
    radius = {box: kind(model, x, y, torch.arange(8), (0.2,)).radius for box, kind in kinds.items()}
    assert (radius["unit"] >= 0.95 * radius["none"]).all()
    double = model.double()
    for i in range(8):
        one, r = slice(i, i + 1), float(radius["unit"][i])
        lowest = worst(double, x[one].double(), y[one], r, "l2", "unit", steps=30)
        assert (lowest.scatter(1, y[one, None], torch.inf) > 0).all()
