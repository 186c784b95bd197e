"""The plan of an evaluation: certificates are tried on a pilot, and the cheapest order that settles as much is what runs."""

import numpy as np
import pandas as pd
import pytest
import torch
from heard import messages_into
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.certificates import CrownCertificate, IBPCertificate, MarginCertificate
from robustbench_rkhs.certificates.bisection import largest
from robustbench_rkhs.certificates.relaxation import Balls
from robustbench_rkhs.evaluation import certificate_job
from robustbench_rkhs.evaluation.certificate_blocks import sized, whole
from robustbench_rkhs.evaluation.plan import PILOT, SURE, Plan, Trial, pilot, planned
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.runtime.cost import estimated
from robustbench_rkhs.runtime.heartbeat import gauge, metered
from robustbench_rkhs.runtime.multiply_adds import MultiplyAdds
from robustbench_rkhs.verdicts import Noticed, Part


def trial(label, cost, *proved, refused=False):
    return Trial(label, cost, tuple(map(float, proved)), refused)


PLANS = {
    "nothing proved": ([trial("a", 1, 0, 0, 0), trial("b", 5, 0, 0, 0)], (), ("a", "b")),
    "one settles all": ([trial("a", 1, 0, 0, 0), trial("b", 5, 1, 1, 1), trial("c", 99, 1, 1, 1)], ("b",), ("a", "c")),
    "a cheap one first": ([trial("a", 1, 1, 1, 0), trial("b", 5, 1, 1, 1)], ("a", "b"), ()),
    "not where it saves less than it costs": ([trial("a", 4, 1, 0, 0), trial("b", 5, 1, 1, 1)], ("b",), ("a",)),
    "the dear one settles one more": ([trial("a", 1, 1, 1, 0), trial("b", 500, 0, 0, 1)], ("a", "b"), ()),
    "a cheaper one that comes later": ([trial("a", 50, 1, 0, 0), trial("b", 5, 0, 1, 1)], ("b", "a"), ()),
    "one that is refused is not left out": ([trial("a", 1, 0, 0, 0, refused=True), trial("b", 5, 1, 0, 0)], ("b",), ()),
    "twins: the one given first": ([trial("a", 5, 1, 1, 1), trial("b", 5, 1, 1, 1)], ("a",), ("b",)),
}


@pytest.mark.parametrize(("trials", "order", "left_out"), PLANS.values(), ids=PLANS.keys())
def test_the_plan_is_the_cheapest_order_that_settles_as_much(trials, order, left_out):
    assert planned(trials, (1.0,), (0.0, 0.0, 0.0)) == Plan(order, left_out)


def test_what_was_proved_before_counts_for_none_and_every_eps_counts():
    small = trial("small", 1, 0.5, 0.5)
    large = trial("large", 9, 1.0, 0.5)
    assert planned([small, large], (0.5,), (0.0, 0.0)) == Plan(("small",), ("large",))
    assert planned([small, large], (0.5, 1.0), (0.0, 0.0)) == Plan(("large",), ("small",))  # small leaves both open
    assert planned([small, large], (0.5,), (0.5, 0.5)) == Plan((), ("small", "large"))


def test_the_pilot_holds_the_largest_margins_and_some_drawn_whatever_the_order():
    margins, index = np.arange(40.0), np.arange(100, 140)
    open_ = np.arange(0, 40, 2)
    one = pilot(open_, margins, index, seed=0)
    assert len(one) == PILOT == len(set(one)) and set(one) <= set(open_)
    assert set(open_[-SURE:]) <= set(one)
    assert (pilot(open_[::-1], margins, index, seed=0) == one).all()
    assert any((pilot(open_, margins, index, seed) != one).any() for seed in range(1, 4))


def test_multiply_adds_are_those_of_the_formula_and_of_gradients_too():
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    x = torch.rand(4, 1, 4, 4)
    one = 3 * 16 * 9 + 48 * 5
    with MultiplyAdds() as forward:
        net(x)
    with MultiplyAdds() as both:
        net(x.requires_grad_()).sum().backward()
    assert forward.count == 4 * one and both.count > 2 * forward.count
    assert estimated(net, (1, 4, 4)) == one + 3 + 5  # and the biases


def deep(first=1.0, seed=0):
    """A network of 6 inputs whose margin bound is weak: an orthogonal layer and its inverse, with a ReLU between."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    x = torch.rand(30, 1, 4, 4)
    return net, x


@pytest.fixture(scope="module")
def proved():
    """A network, its images, and an eps at which crown proves many that the global bounds do not."""
    net, x = deep()
    y = net(x).argmax(1)
    radius = CrownCertificate(norm="linf")(net, x, y, torch.arange(30), ()).radius
    return net, x, y, float(radius.quantile(0.3))


def rows(done, method):
    return done.table[done.table["method"] == method]


def certified(done, eps):
    return (verdicts.states(done, eps)["state"] == "certified").sum()


SETTINGS = {"attacks": ("superdeepfool",), "diagnostics": False, "norm": "linf"}


def test_a_certificate_that_proves_nearly_all_is_kept(proved):
    net, x, y, eps = proved
    done = evaluate(net, (x, y), eps=(eps,), **SETTINGS)
    assert certified(done, eps) >= 15 and not any(line.startswith("crown") for line in done.about.left_out)
    assert len(rows(done, "crown")) > PILOT
    assert all("settled nothing beyond the others on 8 images of a pilot" in line for line in done.about.left_out)


def test_certificates_that_settle_nothing_run_on_the_pilot_alone_and_are_named(proved):
    net, x, y, eps = proved
    lines = []
    done = evaluate(net, (x, y), eps=(10 * eps,), **SETTINGS, on_event=messages_into(lines))
    named = [line.partition(":")[0] for line in done.about.left_out]
    assert named == ["ibp", "crown", "alpha_crown", "sdp_crown"]
    why = "settled nothing beyond the others on 8 images of a pilot"
    assert f"certificates left out: ibp, crown, alpha_crown, sdp_crown: {why}" in lines
    assert {len(rows(done, name)) for name in named} == {PILOT}
    assert verdicts.Evaluation(done.table, done.about).about.left_out == done.about.left_out


def test_certificates_that_are_named_all_run(proved):
    net, x, y, eps = proved
    done = evaluate(net, (x, y), eps=(10 * eps,), certificates=("margin", "ibp", "crown"), **SETTINGS)
    assert not done.about.left_out and len(rows(done, "crown")) == len(rows(done, "ibp")) > PILOT


def test_the_plan_is_kept_and_read_again_whatever_the_number_of_workers(proved, tmp_path, monkeypatch):
    net, x, y, eps = proved
    one = evaluate(net, (x, y), eps=(eps,), workers=1, block=5, **SETTINGS)
    two = evaluate(net, (x, y), eps=(eps,), workers=2, block=5, folder=tmp_path, **SETTINGS)
    assert verdicts.digest(one.table) == verdicts.digest(two.table) and one.about.left_out == two.about.left_out
    monkeypatch.setattr("robustbench_rkhs.evaluation.certify_phase.planned", lambda *_: pytest.fail("planned again"))
    monkeypatch.setattr(certificate_job, "_attempt", lambda *_: pytest.fail("certified again"))
    again = evaluate(net, (x, y), eps=(eps,), workers=1, block=5, folder=tmp_path, **SETTINGS)
    assert verdicts.digest(again.table) == verdicts.digest(one.table) and again.about.left_out == one.about.left_out


def test_what_an_interrupted_certificate_found_is_in_the_table(proved, monkeypatch):
    net, x, y, eps = proved
    original, calls = certificate_job._attempt, []

    def stopped(subject, job):
        calls.append(job.label)
        if calls.count("ibp") == 3:
            raise KeyboardInterrupt
        return original(subject, job)

    monkeypatch.setattr(certificate_job, "_attempt", stopped)
    done = evaluate(net, (x, y), eps=(eps,), certificates=(MarginCertificate(), IBPCertificate()), block=4, **SETTINGS)
    assert not done.about.complete and len(rows(done, "ibp")) == 2 + 4 and len(rows(done, "margin")) == 30


@pytest.mark.parametrize("ball", [2, 3])
def test_an_interruption_inside_an_image_keeps_the_smaller_eps_that_it_proved(proved, tmp_path, monkeypatch, ball):
    """The balls of a search without a radius: the image itself, then each eps, the smaller first."""
    net, x, y, eps = proved
    crown, tried = CrownCertificate(norm="linf"), []
    at = Balls.at

    def interrupting(balls, *given):
        tried.append(given)
        if len(tried) == ball:
            raise KeyboardInterrupt
        return at(balls, *given)

    best = int(crown(net, x, y, torch.arange(30), ()).radius.argmax())
    data, given = (x[best : best + 1], y[best : best + 1]), SETTINGS | {"eps": (eps, 1.1 * eps), "folder": tmp_path}
    monkeypatch.setattr(Balls, "at", interrupting)
    done = evaluate(net, data, certificates=(CrownCertificate(),), **given)
    (row,) = rows(done, "crown").to_dict("records")
    assert done.about.incomplete_because == "interrupted" and row["state_reason"] == "timeout"
    assert (row["radius"] >= eps) == (ball == 3)
    monkeypatch.undo()
    again = evaluate(net, data, certificates=(CrownCertificate(),), **given)
    (row,) = rows(again, "crown").to_dict("records")
    assert again.about.complete and row["state_reason"] == "" and row["radius"] >= 1.1 * eps


def test_no_more_images_than_a_pilot_has_need_no_plan(proved):
    net, x, y, eps = proved
    done = evaluate(net, (x[:6], y[:6]), eps=(10 * eps,), **SETTINGS)
    assert not done.about.left_out and len(rows(done, "sdp_crown")) == 6


@pytest.mark.parametrize(
    ("cost", "most", "size"), [(0, 64, 16), (10**6, 64, 16), (10**6, 5, 5), (5 * 10**8, 64, 4), (10**12, 64, 1)]
)
def test_blocks_are_small_where_an_image_is_expensive(cost, most, size):
    counted = Noticed(decided={"multiply_adds": 2 * cost} if cost else {})
    first = Part(pd.DataFrame({"state_reason": ["", "unknown"]}), counted)
    assert sized(first, most) == size
    assert whole([first, first], 5) is None and len(whole([first, first], 4).table) == 4


def test_what_is_done_inside_a_block_is_told():
    heard = []

    def proves(which, radii):  # the first images are proved at 0.5, all at 0.25
        heard.append((round(meter.share, 9), meter.detail))
        return torch.where((which < 3) | (radii < 0.3), radii, 0.0)

    with metered() as meter:
        note = gauge()
        zero = torch.zeros(4, dtype=torch.float64)
        largest(proves, zero, (0.25, 0.5, 1.0), False, 0.1, tell=lambda done, what: note(done / 4, what))
    assert heard == [(0, ""), (0, "at 0.25"), (0, "at 0.5"), (0.25, "at 1")]
