"""DDN, FMN and ALMA: on networks with a closed form, alone and in company, with and without eps, and from bad starts."""

import copy

import pytest
import torch
from oracles import affine, bent, masking_model
from torch import nn

from robustbench_rkhs.attacks.alma import ALMA
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.ddn import DDN
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.fmn import FMN
from robustbench_rkhs.nodes.node import UserError

CASES = {
    "ddn": DDN(steps=30),
    "ddn cross-entropy": DDN(steps=30, loss="cross_entropy"),
    "fmn l2": FMN(steps=30),
    "fmn linf": FMN(steps=30, norm="linf"),
    "alma l2": ALMA(steps=30),
    "alma linf": ALMA(steps=30, norm="linf"),
}
every = pytest.mark.parametrize("attack", CASES.values(), ids=CASES.keys())


class Ball(nn.Module):
    """Class 0 within `radius` of the grey image, in l2; `power` bends the margin, so that its linearisation is far off."""

    def __init__(self, radius, power):
        super().__init__()
        self.radius, self.power = radius, power

    def forward(self, x):
        away = (x - 0.5).flatten(1).norm(dim=1) / self.radius
        return torch.stack([1 - away**self.power, away**self.power - 1], 1)


@pytest.mark.parametrize("power", [0.25, 1, 8])
@pytest.mark.parametrize("attack", [DDN(), FMN()], ids=["ddn", "fmn"])
def test_a_boundary_that_the_linearisation_misplaces(attack, power):
    """At power 8 it lies hundreds of times too far for an image near the middle, at 1/4 some four times too near."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.02 * torch.randn(6, 1, 4, 4, generator=generator)
    exact = 0.4 - (x - 0.5).flatten(1).norm(dim=1).double()
    attacked = attack(Ball(0.4, power), x, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    found = distances(x, attacked.images, "l2")
    assert (found > 0).all() and (found <= 1.01 * exact).all() and (found >= exact * (1 - 1e-4)).all()


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("name", ["fmn l2", "fmn linf", "ddn", "alma l2", "alma linf"])
def test_neither_the_number_of_pixels_nor_the_distance_matters(name, size):
    """Distances from a ten-thousandth to a tenth, on 16 pixels and 4096."""
    attack = CASES[name].model_copy(update={"steps": 50})
    for scale in (1e-3, 1.0):
        oracle = affine(4, (1, size, size), images=4, margin_scale=scale)
        found = distances(oracle.x, attack(oracle.model, oracle.x, oracle.y, torch.arange(4)).images, attack.norm)
        assert (found > 0).all() and (found <= 1.02 * oracle.distance(attack.norm)).all()


def network():
    model = bent(4).eval().double()
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@every
def test_an_image_alone_in_another_order_or_in_small_batches_gets_the_same(attack):
    model, x, y = network()
    keys = torch.arange(6)
    together = attack(model, x, y, keys)
    assert (distances(x, together.images, attack.norm) > 0).all()
    order = torch.tensor([5, 2, 3])
    other = attack.model_copy(update={"batch_size": 2})(model, x[order], y[order], keys[order])
    torch.testing.assert_close(other.images, together.images[order], atol=1e-9, rtol=0)
    assert torch.equal(other.forwards, together.forwards[order]) and torch.equal(other.backwards, together.backwards[order])


@every
def test_a_finite_eps_ends_an_image_when_it_fell_and_leaves_the_others(attack):
    model, x, y = network()
    free = attack(model, x, y, torch.arange(6))
    found = distances(x, free.images, attack.norm)
    eps = torch.where(torch.arange(6) % 2 == 0, 2 * found, 0.5 * found)
    tight = attack(model, x, y, torch.arange(6), eps)
    away = distances(x, tight.images, attack.norm)
    assert (away[::2] > 0).all() and (away[::2] <= eps[::2]).all() and (tight.forwards[::2] < 15).all()
    assert torch.equal(tight.images[1::2], x[1::2]) and (tight.forwards[1::2] >= 30).all()
    none = attack(model, x, y, torch.arange(6), torch.zeros(6, dtype=torch.float64))
    assert torch.equal(none.images, x) and none.forwards.tolist() == [1] * 6


class Prototypes(nn.Module):
    """Class 0 has one prototype, class 1 two: the nearer of these hides the nearer boundary, which is the other's."""

    def forward(self, x):
        away = x.flatten(1)[:, None] - torch.tensor([[0.5, 0.74], [0.5, 0.788], [0.812, 0.5]]).to(x)
        scores = -away.square().sum(2)
        return torch.stack([scores[:, 0], scores[:, 1:].amax(1)], 1)


@pytest.mark.parametrize("attack", [DDN(), FMN(), FMN(norm="linf"), ALMA(), ALMA(norm="linf"), FAB(), FAB(norm="linf")])
def test_random_starts_find_a_nearer_boundary_that_no_descent_from_the_image_leads_to(attack):
    x, y = torch.full((3, 1, 1, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    normal, gap = torch.tensor([0.312, -0.24]), 0.312**2 - 0.24**2
    exact = gap / 2 / normal.norm(p=2 if attack.norm == "l2" else 1)
    found, descent = (
        distances(x, attack.model_copy(update={"closer": starts})(Prototypes(), x, y, torch.arange(3)).images, attack.norm)
        for starts in (attack.closer, 0)
    )
    assert (found <= 1.01 * exact).all() and (found >= exact * (1 - 1e-4)).all() and (descent > 2 * exact).all()


@every
def test_what_it_costs(attack):
    model, x, y = network()
    few = attack.model_copy(update={"steps": 12, "starts": 2, "candidates": 2, "closer": 0})
    attacked, secants = few(model, x, y, torch.arange(6)), 3 if isinstance(attack, ALMA) else 0
    assert (attacked.forwards <= 2 + secants + 2 * 13).all() and (attacked.backwards <= 3 + 2 * 12).all()
    more = few.model_copy(update={"closer": 4})(model, x, y, torch.arange(6))
    none = distances(x, more.images, attack.norm) == distances(x, attacked.images, attack.norm)  # no start found anything nearer
    assert none.any() and (more.forwards - attacked.forwards)[none].eq(4 * 6).all()
    assert (more.backwards - attacked.backwards)[none].eq(4 * 5).all()
    assert attack.minimal_norm and attack.aimed(norm=attack.norm, eps=0.3, seed=1).eps is None


def test_confident_logits_hide_nothing_from_cross_entropy():
    oracle = masking_model(images=4)
    for scale in (1e-4, 1.0, 1e4):
        model = copy.deepcopy(oracle.model)
        with torch.no_grad():
            model[1].weight.mul_(scale), model[1].bias.mul_(scale)
        found = distances(oracle.x, CASES["ddn cross-entropy"](model, oracle.x, oracle.y, torch.arange(4)).images, "l2")
        assert (found > 0).all() and (found <= 1.01 * oracle.l2).all()


def test_ddn_says_that_it_has_no_linf():
    oracle = affine(images=2)
    with pytest.raises(UserError, match="knows only norm l2, found 'linf'; fmn is its counterpart"):
        DDN(norm="linf")(oracle.model, oracle.x, oracle.y, torch.arange(2))
