"""Quadratic terms that couple layers: below the truth for any choice, tighter than balls, and kept out where there is no proof."""

import math
from functools import partial

import pytest
import torch
from test_branching import small
from test_sdp_crown import rows_of, trained
from torch import nn

from robustbench_rkhs.certificates import SdpCrownCertificate
from robustbench_rkhs.certificates.counterexamples import refuted
from robustbench_rkhs.certificates.coupled import CLOSE, Effort, coupled_rows
from robustbench_rkhs.layers import Normalize, Residual
from robustbench_rkhs.relaxations import ball
from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.branching import branched
from robustbench_rkhs.relaxations.coupled_ascent import THOROUGH, Choice, begun, coupled
from robustbench_rkhs.relaxations.couplings import Coupling, bounded, chain_of, curvatures, guessed
from robustbench_rkhs.relaxations.full_crown import proved_trace
from robustbench_rkhs.relaxations.lagrangian import Ball, Tilt
from robustbench_rkhs.relaxations.links import links
from robustbench_rkhs.relaxations.parabola import Bowl, parabola
from robustbench_rkhs.relaxations.rows import doubled, started, valued
from robustbench_rkhs.runtime.clock import OutOfTime

F64 = torch.float64


@pytest.mark.parametrize("left", [0.0, 0.1, 1.0])
def test_each_part_is_the_minimum_on_a_fine_grid(left):
    torch.manual_seed(0)
    n = 40
    c, slope = torch.randn(1, 1, n, dtype=F64), torch.rand(1, 1, n, dtype=F64) * 2 - 0.5
    lower = torch.randn(1, n, dtype=F64) - 0.5
    upper, center = lower + 2 * torch.rand(1, n, dtype=F64), torch.randn(1, n, dtype=F64)
    after = torch.rand(1, 1, n, dtype=F64)
    before, m, around = (
        after + 0.1 + torch.rand(1, 1, n, dtype=F64),
        torch.full((1, 1), 0.3, dtype=F64),
        Ball(center, torch.ones(1)),
    )
    found = parabola(c, left, lower, upper, around, Tilt(slope, m), Bowl(after, before), True)
    z = lower + (upper - lower) * torch.linspace(0, 1, 20001, dtype=F64)[:, None]
    f, f0, r = torch.where(z > 0, z, left * z), torch.where(center > 0, center, left * center), found.slopes[0]
    value = c[0] * f - after[0] / 2 * (f - f0) ** 2 - r * z + (before[0] + 0.3) / 2 * (z - center) ** 2
    least = value.amin(0)
    assert (found.parts[0, 0] <= least + 1e-12).all()
    torch.testing.assert_close(found.parts[0, 0], least, rtol=0, atol=1e-6)
    assert found.balls.item() == pytest.approx(0.15) and 0 < found.errors.item() < 1e-9
    torch.testing.assert_close(r, (left + (1 - left) * slope[0]) * c[0])


CHAINS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)),
    "leaky": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.LeakyReLU(0.2), nn.Linear(12, 3)),
    "convolutions": lambda: nn.Sequential(
        Normalize([0.4], [0.3]),
        nn.Conv2d(1, 3, 3, 2, 1),
        nn.ReLU(),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ),
}


def chain(name):
    torch.manual_seed(3)
    model = CHAINS[name]().double().eval()
    for parameter in model.parameters():
        parameter.data *= 1.5
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
            layer.running_mean.normal_()
    return model.requires_grad_(False), torch.rand(2, 1, 4, 4, dtype=F64)


@pytest.mark.parametrize("name", CHAINS)
def test_links_are_the_maps_between_the_kinks(name):
    model, x = chain(name)
    found = links(proved_trace(model, ball(x[:1], 0.1, "l2"), False).steps)
    kinks = [at for at, layer in enumerate(model) if isinstance(layer, nn.ReLU | nn.LeakyReLU)]
    assert [link.path for link in found] == [str(at) for at in kinks]
    z, start = x[:1], 0
    for link, end in zip(found, kinks, strict=True):
        part = model[start:end]
        d = torch.randn(z.shape, dtype=F64)
        torch.testing.assert_close((part(z + d) - part(z)).flatten(), link.matrix @ d.flatten())
        z, start = model[end](part(z)), end + 1


def test_there_are_no_links_of_other_networks():
    shape = (1, 1, 4, 4)
    body = [nn.Flatten(), nn.Linear(16, 8)]
    for layers in (
        [*body, Residual(nn.Identity(), nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3)],
        [*body, nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)],
        [*body, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)],
        [nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)],
        [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)],
    ):
        model = nn.Sequential(*layers).double().eval().requires_grad_(False)
        assert links(proved_trace(model, ball(torch.rand(shape, dtype=F64), 0.1, "l2"), False).steps) == []


def lowest(model, x, row, eps, unit, points=2000, steps=40):
    """The least value of a row of logits that gradient steps reach."""
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(points // 20, *x.shape, dtype=F64, generator=generator)
    least = math.inf
    for step in range(steps):
        d = d * (eps / d.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
        at = ((x + d).clamp(0, 1) if unit else x + d).requires_grad_()
        with torch.enable_grad():
            value = model(at) @ row
        least = min(least, value.min().item())
        (slope,) = torch.autograd.grad(value.sum(), at)
        way = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
        d = at.detach() - x - eps * (0.5 - 0.45 * step / steps) * way
    return least


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_any_choice_is_sound_and_the_best_one_is_above_balls_alone(name, unit):
    model, x = chain(name)
    x = x.round(decimals=0) if unit else x  # in the corners of the box
    y, eps = model(x).argmax(1), 0.5
    pairs = torch.tensor([(a, b) for a in range(2) for b in range(3) if b != int(y[a])])
    rows = rows_of(model, x, y, eps, pairs)
    if unit:
        first = rows.steps[0]
        rows = rows._replace(steps=[first._replace(before=first.before._replace(unit=True)), *rows.steps[1:]])
    links_ = links(rows.steps)
    around = chain_of(model, x, links_)
    eye = torch.eye(3, dtype=F64)
    truth = torch.tensor([lowest(model, x[a], eye[y[a]] - eye[b], eps, unit) for a, b in pairs.tolist()])
    goal = torch.full((len(pairs),), torch.inf, dtype=F64)
    plain = optimised(rows, started(rows), goal, Search(60))
    balls = valued(rows, doubled(plain), True)[0]
    best = coupled(rows, begun(plain, around), goal, Search(60, 0.1), around).double()
    curved = curvatures(best.couplings, around)
    value = bounded(rows, best.tilts, curved, around)
    assert (value <= truth).all() and (value.maximum(balls) > balls + 1e-3).any()
    assert (value <= guessed(rows, best.tilts, curved, around) + 1e-4).all()
    frozen = coupled(rows, Choice(plain, {}), goal, Search(20, 0.1), around, curved).double()
    assert (bounded(rows, frozen.tilts, curved, around) <= truth).all()
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, dtype=F64, generator=generator)
    for _ in range(4):
        tilts = {
            p: Tilt(t.slope + draw(t.slope.shape), t.multiplier * draw(t.multiplier.shape).exp()) for p, t in best.tilts.items()
        }
        some = {
            p: Coupling(c.push * draw(c.push.shape).exp(), c.scale * draw(c.scale.shape).exp()) for p, c in best.couplings.items()
        }
        assert (bounded(rows, tilts, curvatures(some, around), around) <= truth).all()


def test_without_curvature_the_bound_is_that_of_the_balls():
    model, x = chain("mlp")
    rows = rows_of(model, x[:1], torch.tensor([0]), 0.3, torch.tensor([[0, 1], [0, 2]]))
    around, tilts = chain_of(model, x[:1], links(rows.steps)), started(rows)
    none = {
        link.path: Coupling(torch.full((2, len(link.matrix)), 1e-14, dtype=F64), torch.ones(2, len(link.matrix), dtype=F64))
        for link in around.links
    }
    found = bounded(rows, tilts, curvatures(none, around), around)
    torch.testing.assert_close(found, valued(rows, tilts, True)[0], rtol=0, atol=1e-9)


def test_on_parts_it_reaches_the_true_radius_and_never_passes_it():
    model, x, y, nearest = small(0)
    for at in (3,):
        true = float(nearest[at].clamp_max(1.0))
        for share in (0.9, 1.02):
            rows = rows_of(model, x[at : at + 1], y[at : at + 1], share * true, torch.tensor([[0, 1 - int(y[at])]]))
            around, aim = chain_of(model, x[at : at + 1], links(rows.steps)), torch.full((1,), 1e-6, dtype=F64)
            choice = coupled(rows, begun(started(rows), around), aim, Search(60, 0.1), around)
            curved = curvatures(choice.double().couplings, around)
            found = branched(rows, choice, aim, 100, around, curved)
            assert found.proved if share < 1 else not found.proved or nearest[at] > 1


def test_the_certificate_proves_more_with_couplings_and_nothing_that_an_attack_refutes():
    model, x, y = trained()
    x, y, keys, asked = x[:3], y[:3], torch.arange(3), (0.46, 0.54)
    method = partial(SdpCrownCertificate, search=False, intervals=1, steps=40, domains=0)
    radius = {steps: method(couplings=steps)(model, x, y, keys, asked).radius for steps in (0, 60)}
    assert (radius[60] >= radius[0]).all() and (radius[60] > radius[0]).any()
    double = model.double()
    for i in range(3):
        for other in range(8):
            if other != int(y[i]) and radius[60][i] > 0:
                assert not refuted(double, x[i].double(), int(y[i]), other, float(radius[60][i]), "l2", False)


def test_an_attack_finds_what_is_near_and_nothing_in_a_ball_that_is_safe():
    model, x, y, nearest = small(0)
    for at in range(6):
        if nearest[at] < 1:
            one, label = x[at], int(y[at])
            assert refuted(model, one, label, 1 - label, 1.2 * float(nearest[at]) + 0.01, "l2", False)
            assert refuted(model, one, label, 1 - label, 1.2 * float(nearest[at]) + 0.01, "linf", False)
            assert not refuted(model, one, label, 1 - label, 0.98 * float(nearest[at]) - 0.01, "l2", False)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_numbers_beyond_float32_are_searched_without_an_error_and_prove_nothing_false(scale):
    model, x = chain("mlp")
    y = model(x).argmax(1)
    for number, factor in ((1, scale), (3, 1 / scale)):
        model[number].weight.mul_(factor)
    model[1].bias.mul_(scale)  # the same function
    pairs = torch.tensor([(a, b) for a in range(2) for b in range(3) if b != int(y[a])])
    eye = torch.eye(3, dtype=F64)
    truth = torch.tensor([lowest(model, x[a], eye[y[a]] - eye[b], 0.5, False) for a, b in pairs.tolist()])
    rows = rows_of(model, x, y, 0.5, pairs)
    around = chain_of(model, x, links(rows.steps))
    goal = torch.full((len(pairs),), torch.inf, dtype=F64)
    best = coupled(rows, begun(started(rows), around), goal, Search(20, 0.1), around).double()
    assert (bounded(rows, best.tilts, curvatures(best.couplings, around), around) <= truth).all()


def test_a_search_asks_for_the_time_within_a_step_and_ends_with_what_it_has(monkeypatch):
    model, x = chain("mlp")
    rows = rows_of(model, x[:1], torch.tensor([0]), 0.3, torch.tensor([[0, 1], [0, 2]]))
    around, tilts, goal = chain_of(model, x[:1], links(rows.steps)), started(rows), torch.full((2,), torch.inf, dtype=F64)
    for most in (1, THOROUGH // 2, 3 * THOROUGH // 2):  # all of them before the first value is known
        left = iter(range(most))

        def asked(left=left):
            if next(left, None) is None:
                raise OutOfTime

        monkeypatch.setattr("robustbench_rkhs.relaxations.coupled_ascent.ask", asked)
        first, found = begun(tilts, around), coupled(rows, begun(tilts, around), goal, Search(5, 0.1), around)
        assert next(left, None) is None
        for path in first.tilts:
            assert torch.equal(first.tilts[path].multiplier, found.tilts[path].multiplier)
            assert torch.equal(first.couplings[path].push, found.couplings[path].push)


def test_curvatures_that_overflow_bound_nothing():
    model, x = chain("mlp")
    rows = rows_of(model, x[:1], torch.tensor([0]), 0.3, torch.tensor([[0, 1], [0, 2]]))
    around = chain_of(model, x[:1], links(rows.steps))
    choice = begun(started(rows), around).double()
    for number in (0, 1):
        couplings = dict(choice.couplings)
        path = around.links[number].path
        couplings[path] = couplings[path]._replace(push=torch.full_like(couplings[path].push, math.inf))
        assert (bounded(rows, choice.tilts, curvatures(couplings, around), around) == -math.inf).all()


def test_a_search_goes_on_where_all_rows_are_close_to_zero_and_only_there():
    model, x = chain("mlp")
    y = model(x).argmax(1)
    pairs = torch.tensor([(0, b) for b in range(3) if b != int(y[0])])
    rows = rows_of(model, x[:1], y[:1], 0.5, pairs)
    around = chain_of(model, x[:1], links(rows.steps))
    tilts, effort = started(rows), Effort(20, 1e15, None)

    def worth(choice):
        return bounded(rows, choice.double().tilts, curvatures(choice.double().couplings, around), around)

    far, start = torch.full((len(pairs),), 1e-9, dtype=F64), begun(tilts, around)
    level = worth(coupled(rows, start, torch.full_like(far, torch.inf), Search(20, 0.1), around)).max() + 0.1
    rows = rows._replace(lines=rows.lines._replace(offsets=rows.lines.offsets - level))
    plain = worth(coupled(rows, start, far, Search(20, 0.1), around))
    assert (plain < 0).all() and torch.equal(coupled_rows(rows, tilts, far, effort, around).value, plain)
    near = coupled_rows(rows, tilts, -plain / CLOSE * 1.5, effort, around)
    assert torch.equal(near.value, worth(near.choice)) and near.value.min() > plain.min() + 1e-3
    assert torch.equal(coupled_rows(rows, tilts, -plain / CLOSE * 1.5, Effort(20, 1.0, None), around).value.isfinite(), plain < 0)
