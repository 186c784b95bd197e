"""ALMA: its steps against their definitions, and the attack on networks with a closed form, alone and in company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from test_starts import Ball, network
from torch import nn

from robustbench_rkhs.attacks.alma import ALMA, normal, proximal, slope_of_penalty
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.ddn import DDN
from robustbench_rkhs.attacks.fmn import FMN

both = pytest.mark.parametrize("norm", ["l2", "linf"])


def test_the_penalty_is_the_papers():
    """P2 of the paper by autograd: a quadratic and a cubic term where something is missing, a barrier's mirror where not."""
    y = torch.linspace(-1, 1, 41, dtype=torch.float64, requires_grad=True)
    for rho, mu in ((0.3, 1e-6), (4.0, 1.0), (50.0, 20.0)):
        value = torch.where(y >= 0, mu * y + mu * rho * y**2 + rho**2 * y**3 / 6, mu * y / (1 - rho * y.clamp_max(0)))
        (slope,) = torch.autograd.grad(value.sum(), y)
        one = torch.ones_like(y.detach())
        torch.testing.assert_close(slope_of_penalty(y.detach(), rho * one, mu * one), slope)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 3.0), st.sampled_from(["l2", "linf"]))
def test_a_step_is_the_least_of_its_definition(seed, length, norm):
    """No point of many, and none a general solver finds, is lower than the proximal point."""
    generator = torch.Generator().manual_seed(seed)
    delta, gradient = (torch.randn(1, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(1, 5, generator=generator, dtype=torch.float64) + 0.1
    weight = weight / weight.sum() if norm == "linf" else torch.ones_like(weight)
    step = proximal(delta, gradient, 7 * weight, torch.tensor([length], dtype=torch.float64), norm)[0]
    moved = (delta - length * gradient / weight)[0]

    def cost(d):
        d = torch.as_tensor(d)
        return (length * d.norm(p=2 if norm == "l2" else torch.inf) + (weight[0] * (d - moved) ** 2).sum() / 2).item()

    near = step + 0.1 * torch.randn(50, 5, generator=generator, dtype=torch.float64)
    others = [*near, minimize(cost, step.numpy(), method="Nelder-Mead").x]
    assert cost(step) <= min(map(cost, others)) + 1e-9


@both
def test_normals_have_dual_length_one_at_any_scale(norm):
    gradient = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1.0, 1e30):
        way = normal(scale * gradient, norm)
        torch.testing.assert_close(way.flatten(1).norm(p=2 if norm == "l2" else 1, dim=1), torch.ones(3))
    assert not normal(0 * gradient, norm).any()


@pytest.mark.parametrize("power", [0.25, 1, 8, 30])
def test_a_boundary_that_the_linearisation_misplaces(power):
    """At power 30 it lies farther than the box from an image near the middle, at 1/4 some four times too near."""
    x = 0.5 + 0.02 * torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = 0.4 - (x - 0.5).flatten(1).norm(dim=1).double()
    attacked = ALMA()(Ball(0.4, power), x, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    found = distances(x, attacked.images, "l2")
    assert (found > 0).all() and (found <= 1.02 * exact).all() and (found >= exact * (1 - 1e-4)).all()


class Walled(nn.Module):
    """Margin -2 tanh(40 (s - 0.5)) - 1 of the mean s: nearly flat, then a cliff, then nearly flat."""

    def forward(self, x):
        fall = torch.tanh(40 * (x.flatten(1).mean(1) - 0.5)) + 0.5
        return torch.stack([-fall, fall], 1)


@both
def test_a_plateau_before_a_cliff(norm):
    """The linearised boundary is farther than the box is wide; the exact one is the plane where tanh is -0.5."""
    x = torch.full((2, 1, 4, 4), 0.3, dtype=torch.float64)
    x[1] = 0.4
    plane = 0.5 + torch.atanh(torch.tensor(-0.5, dtype=torch.float64)) / 40
    exact = (plane - x[:, 0, 0, 0]) * (4 if norm == "l2" else 1)
    attacked = ALMA(norm=norm)(Walled(), x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    found = distances(x, attacked.images, norm)
    assert (found >= exact * (1 - 1e-9)).all() and (found <= 1.01 * exact).all()


def test_every_image_that_ddn_breaks_is_broken_no_farther_away():
    model, x, y = network()
    theirs, ours = (distances(x, attack(model, x, y, torch.arange(6)).images, "l2") for attack in (DDN(), ALMA()))
    assert (theirs > 0).all() and (ours > 0).all() and (ours / theirs).mean() <= 1.001


@both
def test_what_no_start_of_its_own_breaks_goes_to_the_other_attack(norm):
    """A random network whose boundary is near the box's corners: of these images, steps along the Lagrangian miss some."""
    with torch.random.fork_rng():
        torch.manual_seed(10)
        layers = [layer for a in (36, 40, 40) for layer in (nn.Linear(a, 40), nn.ReLU())]
        model, x = nn.Sequential(nn.Flatten(), *layers, nn.Linear(40, 2)).eval(), torch.rand(8, 1, 6, 6)
    with torch.no_grad():
        y = model(x).argmax(1)
    attacks = (DDN(steps=30) if norm == "l2" else FMN(steps=30, norm=norm), ALMA(steps=30, norm=norm))
    theirs, ours = (distances(x, attack(model, x, y, torch.arange(8)).images, norm) > 0 for attack in attacks)
    assert theirs.any() and (ours | ~theirs).all()
