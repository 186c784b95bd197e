"""Every attack and certificate under a clock that runs out at one of its questions: it ends there, and keeps what it has."""

import math

import pytest
import torch
from oracles import affine
from test_attacks import EVERY
from test_certificates import CERTIFICATES, SEARCHED
from torch import nn

from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.base import Attack
from robustbench_rkhs.certificates import SmoothingCertificate
from robustbench_rkhs.certificates.bisection import largest
from robustbench_rkhs.evaluation.own_method import fenced
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.runtime.clock import Clock, OutOfTime, ask, hold, holding, limited


class Questions(Clock):
    """A clock without time: it runs out at a numbered question."""

    def __init__(self, last=math.inf):
        super().__init__(None)
        self.asked, self.last = 0, last

    def left(self):
        return 1e9 if self.asked < self.last else 0.0

    def ask(self):
        self.asked += 1
        super().ask()


class Watched(nn.Module):
    """A model that must not be asked once the clock has run out."""

    def __init__(self, model, clock):
        super().__init__()
        self.model, self.clock, self.late = model, clock, 0

    def forward(self, x):
        self.late += self.clock.left() <= 0
        return self.model(x)


def moments(questions):
    """Some of the questions at which a clock may run out: the first, one in the middle, the last."""
    return sorted({1, questions // 2, questions} - {0})


def shorter(attack):
    """The attack with a few steps."""
    steps = getattr(attack, "steps", None)
    return attack.model_copy(update={"steps": min(steps, 6)}) if steps else attack


@pytest.mark.parametrize("name", [name for name in EVERY if name != "brendel_bethge"])
def test_an_attack_ends_at_the_next_question_and_keeps_what_it_found(name):
    norm = "l2" if EVERY[name].l2 else "linf"
    oracle, keys = affine(4, (1, 4, 4), seed=1, images=4), torch.arange(4)
    eps = 1.1 * oracle.distance(norm).median().item()  # some fall, and an attack goes on with the others
    attack = shorter(EVERY[name].attack.aimed(norm=norm, eps=eps, seed=0))
    reach = math.inf if attack.minimal_norm else eps + 1e-6
    free = attack(oracle.model, oracle.x, oracle.y, keys)
    clock = Questions()
    with limited(clock):
        whole = attack(oracle.model, oracle.x, oracle.y, keys)
    assert whole.finished and torch.equal(whole.images, free.images) and torch.equal(whole.forwards, free.forwards)
    if whole.forwards.max() <= 3:
        return  # over before there is anything to ask
    assert clock.asked >= 3
    found = []
    for last in moments(clock.asked):
        clock = Questions(last)
        watched = Watched(oracle.model, clock)
        with limited(clock):
            cut = attack(watched, oracle.x, oracle.y, keys)
        assert not cut.finished and clock.asked == last and not watched.late
        assert cut.images.shape == oracle.x.shape and cut.images.min() >= 0 and cut.images.max() <= 1
        assert (cut.forwards <= whole.forwards).all()
        away = distances(oracle.x, cut.images, norm)
        broken = (away > 0) & (away <= reach)
        assert (oracle.model(cut.images[broken]).argmax(1) != oracle.y[broken]).all()
        if cut.broken is not None:
            assert not (cut.broken & ~broken).any()
        found.append(int(broken.sum()))
    away = distances(oracle.x, whole.images, norm)
    lost = int(((away > 0) & (away <= reach)).sum()) - found[-1]
    assert found[0] == 0
    if getattr(attack, "keep", "best") == "best":  # else it is judged by its last image alone
        assert lost <= (name == "square"), "of what it had found was lost"  # Square's last question found one


@pytest.mark.parametrize("name", CERTIFICATES | SEARCHED)
def test_a_certificate_ends_at_the_next_question_and_keeps_what_it_proved(name):
    certificate = CERTIFICATES.get(name) or SEARCHED[name].model_copy(update={"tolerance": 0.5})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
        x = torch.rand(5, 1, 4, 4)
    y, keys = model(x).argmax(1), torch.arange(5)

    def run(clock):
        with torch.no_grad():
            model[1].weight += 1e-6  # bounds that are kept answer without any question
        with limited(clock):
            return certificate(model, x, y, keys, (1e-3, 1e-2))

    clock = Questions()
    whole = run(clock)
    questions = clock.asked
    assert whole.reason == [""] * 5 and (whole.radius > 0).all() and questions >= 5
    proved = []
    for last in moments(questions):
        clock = Questions(last)
        cut = run(clock)
        assert clock.asked <= last + 5  # each image may find the clock used up once
        assert (cut.radius <= whole.radius * (1 + 1e-3)).all()
        assert all(reason == "timeout" or radius > 0 for reason, radius in zip(cut.reason, cut.radius.tolist(), strict=True))
        assert "timeout" in cut.reason or last > questions // 2  # at the last question there may be nothing left to do
        proved.append(int((cut.radius > 0).sum()))
    assert proved[0] == 0 and (proved[-1] > 0 or name in CERTIFICATES)


@pytest.mark.parametrize("stopping", ["fixed", "spending", "sequence", "betting"])
def test_smoothing_claims_what_its_last_look_proved(stopping):
    base = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        base[1].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]))
        base[1].bias.zero_()
    model, x, y = Smoothed(base, 0.25).eval(), torch.full((2, 1, 2, 2), 0.2), torch.zeros(2, dtype=torch.int64)
    truth, keys = 0.4, torch.arange(2)
    certificate = SmoothingCertificate(n=2000, n0=50, batch=100, stopping=stopping)

    def run(clock):
        with limited(clock):
            return certificate(model, x, y, keys, (0.39,))

    clock = Questions()
    whole = run(clock)
    assert whole.reason == ["", ""]
    for last in moments(clock.asked):
        cut = run(Questions(last))
        assert "timeout" in cut.reason and (cut.radius <= truth).all() and (cut.forwards <= whole.forwards).all()
        if stopping == "fixed":
            assert all(radius == 0 for radius, reason in zip(cut.radius.tolist(), cut.reason, strict=True) if reason)


def test_a_search_that_is_cut_says_of_which_images():
    truth = torch.tensor([0.0, 0.03, 7.0], dtype=torch.float64)
    clock, asked = Questions(), []

    def proves(which, radii):
        asked.append(len(which))
        if len(asked) > 2:  # in the third round the clock runs out before the last ball
            clock.last = clock.asked
            return torch.where(torch.arange(len(which)) < len(which) - 1, torch.where(radii <= truth[which], radii, 0.0), torch.nan)
        return torch.where(radii <= truth[which], radii, 0.0)

    with limited(clock):
        found = largest(proves, torch.zeros_like(truth), (0.01, 1.0), True, 1e-2)
    assert found.radius.tolist() == [0.0, 0.01, 0.01] and found.cut.tolist() == [False, True, True]
    free = largest(lambda which, radii: truth[which], torch.zeros_like(truth), (0.01, 1.0), True, 1e-2)
    assert not free.cut.any()


def test_an_interrupted_search_returns_what_is_proved_where_somebody_waits_for_it():
    tried = []

    def proves(which, radii):
        tried.append(radii)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return torch.where(radii < 0.5, radii, 0.0)

    def search():
        tried.clear()
        return largest(proves, torch.zeros(2, dtype=torch.float64), (0.1, 0.2), False, 0.1)

    with pytest.raises(KeyboardInterrupt):
        search()
    with holding() as held:
        found = search()
        assert found.radius.tolist() == [0.1, 0.1] and found.cut.all() and isinstance(held.interruption, KeyboardInterrupt)
        with pytest.raises(OutOfTime):
            ask()  # nothing more is begun
        assert not hold(KeyboardInterrupt())  # the second one ends the work at once


def test_a_clock_that_is_used_up_lets_no_search_begin():
    with limited(Clock(0)):
        found = largest(lambda which, radii: radii, torch.zeros(2, dtype=torch.float64), (0.1,), False, 0.1)
    assert found.cut.all() and not found.radius.any()


class Endless(Attack):
    """An attack of the user's own that never ends, and takes every exception for one of the model's."""

    def __call__(self, model, x, y, keys):
        while True:
            try:
                model(x)
            except Exception:
                pass


def test_an_attack_of_one_s_own_ends_when_it_asks_the_model():
    oracle = affine(3, (1, 4, 4), images=2)
    clock = Questions(5)
    watched = Watched(oracle.model, clock)
    with pytest.raises(OutOfTime), limited(clock), fenced(Endless(), watched):
        Endless()(watched, oracle.x, oracle.y, torch.arange(2))
    assert clock.asked == 5 and not watched.late and not watched._forward_pre_hooks
