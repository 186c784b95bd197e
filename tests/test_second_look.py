"""The second look: if time is limited, what gradient steps break within the asked-for epsilons is known before the protocol."""

import numpy as np
import pytest
import torch
from oracles import affine
from test_first_look import found, stopped
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN
from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.evaluation import counting, second_look
from robustbench_rkhs.evaluation.run import evaluate

LABEL = "first:apgd:margin"


@pytest.fixture
def scene(monkeypatch):
    """An affine model, as if the first look had found nothing; the protocol is interrupted before its first attack."""
    oracle = affine(4, (1, 3, 4), images=12)
    monkeypatch.setattr("robustbench_rkhs.evaluation.run.FirstLook.due", lambda self: False)
    stopped(monkeypatch, counting, "counted", lambda job: not job.label.startswith("first:"))
    return oracle.model, oracle.x, oracle.y, oracle.l2.numpy()


@pytest.mark.parametrize("proofs", [(), ("margin",)])
def test_before_the_protocol_every_open_image_was_attacked_at_its_largest_open_eps(scene, proofs):
    model, x, y, truth = scene
    eps = tuple(float(np.quantile(truth, share)) for share in (0.3, 0.6, 0.9))
    done = evaluate(model, (x, y), eps=eps, certificates=proofs, budget=3600.0)
    rows = found(done, LABEL)
    assert not done.about.complete and LABEL not in done.about.protocol and not done.about.breaches
    for one in eps:
        state = verdicts.states(done, one)["state"].to_numpy()
        assert (state[truth > one * 1.001] == ("certified" if proofs else "untested")).all()  # what stood is not said to survive
        assert (state[truth < one * 0.95] == "broken").all()
    falls = rows[np.isfinite(rows["radius"])]
    assert (falls["radius"].to_numpy() >= truth[falls["index"]] * (1 - 1e-4)).all()
    assert not rows.duplicated(["index", "eps"]).any()
    if proofs:  # what is proved at an eps is not attacked there
        assert (rows["eps"].to_numpy() > truth[rows["index"]] * 0.99).all()


def test_without_a_budget_there_is_none(scene):
    model, x, y, truth = scene
    done = evaluate(model, (x, y), eps=(float(np.median(truth)),), certificates=())
    assert not len(found(done, LABEL))


def test_a_look_that_fails_or_that_time_leaves_out_ends(scene, monkeypatch):
    model, x, y, truth = scene

    def fail(self, engine):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(APGD, "search", fail)
        done = evaluate(model, (x, y), eps=(float(np.median(truth)),), certificates=(), budget=3600.0)
        assert not len(found(done, LABEL)) and not done.about.failed
    monkeypatch.setattr(second_look, "SHARE", 0.0)
    done = evaluate(model, (x, y), eps=(float(np.median(truth)),), certificates=(), budget=3600.0)
    assert not len(found(done, LABEL))


def test_the_table_is_no_worse_than_ddn_on_all_images(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    x = torch.rand(12, 1, 3, 4)
    y = model(x).argmax(1)
    monkeypatch.setattr("robustbench_rkhs.evaluation.run.FirstLook.due", lambda self: False)
    stopped(monkeypatch, counting, "counted", lambda job: not job.label.startswith("first:"))
    alone = DDN(steps=20)(model, x, y, torch.arange(len(x)))
    distance = (alone.images - x).flatten(1).double().norm(dim=1).numpy()
    eps = tuple(float(np.quantile(distance, share)) * (1 + 1e-6) for share in (0.25, 0.5, 0.9))
    done = evaluate(model, (x, y), eps=eps, certificates=(), budget=3600.0)
    asked = found(done, "first:ddn").set_index("index")["radius"]
    for one in eps:
        state = verdicts.states(done, one)["state"].to_numpy()
        assert (state[distance <= one] == "broken").all()
    np.testing.assert_allclose(asked.to_numpy(), distance[asked.index], rtol=1e-5)
    assert 0 < len(asked) < len(x)  # those that were broken at every eps already were left out
