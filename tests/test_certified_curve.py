"""Certified radii for a curve are the largest that the certificates prove, to a step; whether they are searched is counted."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.certificates import AlphaCrownCertificate, CrownCertificate, SmoothingCertificate
from robustbench_rkhs.certificates.bisection import largest
from robustbench_rkhs.cli.flags import spelt
from robustbench_rkhs.evaluation.certified_curve import PARTS, full_cost, pays, searched, searching
from robustbench_rkhs.evaluation.run import evaluate

EPS = (0.1, 1.5)


def small():
    """A random network that Lipschitz bounds certify badly, and its own answers on random images."""
    torch.manual_seed(3)
    sizes = (16, 24, 24, 24, 4)
    layers = [one for a, b in pairwise(sizes) for one in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers[:-1]).eval()
    x = torch.rand(14, 1, 4, 4)
    return model, x, model(x).argmax(1)


def best(done):
    return verdicts.images(done)["certified"].to_numpy()


def test_a_search_with_a_step_ends_within_it_of_the_largest_ball_and_at_the_largest_eps():
    truth = torch.rand(200, dtype=torch.float64) * 2
    tries = []

    def proves(which, radii):
        tries.append(len(which))
        return torch.where(radii <= truth[which], radii, 0.0)

    found = largest(proves, torch.zeros_like(truth), (0.1, 1.0), True, 1e-2, 1 / 64).radius
    inside = truth < 1
    assert (found <= truth).all() and (found[~inside] == 1.0).all()
    assert (truth[inside] - found[inside] <= torch.clamp(found[inside] * 1e-2, min=1 / 64) + 1e-12).all()
    assert len(tries) <= 1 + 2 + 6  # right or wrong, each requested eps, then log2 of the steps


def test_an_evaluation_with_curve_proves_what_a_full_search_proves_to_a_step():
    model, x, y = small()
    settings = {"attacks": ({"name": "superdeepfool"},), "diagnostics": False}
    alone = {certificate: evaluate(model, (x, y), eps=EPS, certificates=(certificate,), **settings) for certificate in ("crown",)}
    stopped = {"name": "crown", "search": False}
    at_eps = evaluate(model, (x, y), eps=EPS, certificates=(stopped,), curve=False, **settings)
    curve = evaluate(model, (x, y), eps=EPS, certificates=(stopped,), curve=True, **settings)
    assert (at_eps.about.curve, curve.about.curve, alone["crown"].about.curve) == (False, True, True)
    assert verdicts.accuracy_steps(curve).full and not verdicts.accuracy_steps(at_eps).full
    full, step = best(alone["crown"]).clip(max=EPS[1]), EPS[1] / PARTS
    assert (best(curve) >= best(at_eps) - 1e-12).all() and (best(curve) > best(at_eps) + step).any()
    assert (best(curve).clip(max=EPS[1]) >= full - 2 * step).all()
    for eps in EPS:
        assert curve.certified_accuracy(eps) == at_eps.certified_accuracy(eps)
    assert not curve.about.breaches and not len(verdicts.breaches(curve))


def test_the_default_is_decided_by_what_was_counted_and_alike_in_several_processes():
    model, x, y = small()
    x, y = x[:5], y[:5]
    dear = evaluate(model, (x, y), eps=EPS, attacks=({"name": "pgd", "steps": 1},), diagnostics=False)
    assert dear.about.curve is False
    settings = {"eps": EPS, "attacks": ({"name": "ensemble"},), "diagnostics": False, "rechecked": 0}
    one, two = evaluate(model, (x, y), **settings), evaluate(model, (x, y), workers=2, **settings)
    assert one.about.curve is True and two.about.curve is True
    assert verdicts.digest(one.table) == verdicts.digest(two.table)
    assert evaluate(model, (x, y), **(settings | {"curve": False})).about.curve is False


def test_what_is_searched():
    for method in (CrownCertificate(search=False), AlphaCrownCertificate(search=False)):
        wide = searching(method, 0.64)
        assert not searched(method) and searched(wide) and wide.step == pytest.approx(0.01)
    assert searching(CrownCertificate(), 0.5) == CrownCertificate() and searched(CrownCertificate())
    assert not searched(SmoothingCertificate(n=10)) and searched(searching(SmoothingCertificate(n=10), 0.5))


def test_pays():
    assert pays({"crown": 10.0}, 3, (0.1, 0.2), 3 * 5 * 9 + 1) and not pays({"crown": 10.0}, 3, (0.1, 0.2), 3 * 5 * 9)
    assert full_cost(()) == 0


def test_curve_is_typed_as_a_switch():
    assert spelt(["--curve", "--eps", "1"]) == ["--curve=true", "--eps", "1"] and spelt(["--no-curve"]) == ["--curve=false"]
    assert spelt(["--curve", "false", "--eps", "1"]) == ["--curve", "false", "--eps", "1"] and spelt(["--curve=true"]) == [
        "--curve=true"
    ]
