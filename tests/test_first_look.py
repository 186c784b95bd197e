"""First facts first: an upper bound of every image before certificates and attacks, replaced by what comes nearer."""

import numpy as np
import pytest
import torch
from oracles import affine

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD, SuperDeepFool
from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.evaluation import certificate_job, counting, first_look
from robustbench_rkhs.evaluation.run import evaluate

LABEL = "first:superdeepfool"


@pytest.fixture
def scene():
    oracle = affine(4, (1, 3, 4), images=12)
    return oracle.model, oracle.x, oracle.y, oracle.l2.numpy()


def found(done, method=LABEL):
    return done.table[done.table["method"] == method]


def stopped(monkeypatch, module, name, when):
    """Interrupt where a function is called for a job for which `when` holds."""
    original = getattr(module, name)

    def interrupting(subject, job):
        if when(job):
            raise KeyboardInterrupt
        return original(subject, job)

    monkeypatch.setattr(module, name, interrupting)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_interrupted_before_any_certificate_the_table_holds_an_upper_bound_of_every_image(norm, monkeypatch):
    oracle = affine(4, (1, 3, 4), images=12)
    stopped(monkeypatch, certificate_job, "_attempt", lambda job: True)
    truth = oracle.distance(norm).numpy()
    eps = float(np.median(truth))
    done = evaluate(oracle.model, (oracle.x, oracle.y), eps=(eps,), norm=norm, budget=3600.0)
    rows = found(done).sort_values("index")
    assert len(rows) == 12 and (rows["radius"] >= truth * (1 - 1e-4)).all() and (rows["radius"] <= 1.3 * truth).all()
    assert (rows["forwards"] <= 7).all() and (rows["backwards"] <= 4).all()  # one more to count it
    low, high = done.robust_range(eps)
    assert low == 0.0 and high <= 0.6 and not done.about.complete
    assert done.about.failed == () and LABEL not in done.about.protocol


def test_once_complete_only_what_nothing_came_nearer_than_stays(scene, monkeypatch):
    model, x, y, truth = scene
    eps = (float(np.median(truth)),)
    settings = {"eps": eps, "certificates": ("margin",), "diagnostics": False}
    plain = evaluate(model, (x, y), attacks=(SuperDeepFool(steps=20),), **settings)
    looked = evaluate(model, (x, y), attacks=(SuperDeepFool(steps=20),), budget=3600.0, **settings)
    assert looked.about.complete and not len(found(plain))
    rest = looked.table[looked.table["method"] != LABEL]
    assert len(rest) == len(plain.table)
    nearest = rest[rest["kind"] == "attack"].groupby("index")["radius"].min()
    assert (found(looked)["radius"].to_numpy() <= nearest.reindex(found(looked)["index"]).fillna(np.inf).to_numpy()).all()
    weak = evaluate(model, (x, y), attacks=(PGD(steps=1, targets=0),), budget=3600.0, adversarials=True, **settings)
    kept = found(weak)
    assert len(kept) and weak.about.complete
    images = weak.nearest
    distance = dict(zip(images.index.tolist(), images.distance.tolist(), strict=True))
    attacks = weak.table[weak.table["kind"] == "attack"].groupby("index")["radius"].min()
    assert all(distance[index] == radius for index, radius in attacks[np.isfinite(attacks)].items())


def test_it_is_due_where_a_pass_is_dear_or_time_is_short(scene, monkeypatch):
    model, x, y, truth = scene
    looked, original = [], counting.counted

    def watched(subject, job):
        looked.append(job.label)
        return original(subject, job)

    monkeypatch.setattr(counting, "counted", watched)
    settings = {"eps": (float(np.median(truth)),), "attacks": ("superdeepfool",), "certificates": (), "diagnostics": False}
    evaluate(model, (x, y), **settings)
    assert LABEL not in looked
    monkeypatch.setattr(first_look, "LARGE", 12 * 12 * 4)  # images, pixels, classes
    evaluate(model, (x, y), **settings)
    assert looked.count(LABEL) == 1
    evaluate(model, (x, y), **{**settings, "eps": (0.0,)})
    assert looked.count(LABEL) == 1


def test_what_it_broke_has_left_for_certificates_of_the_epsilons_alone(scene, monkeypatch):
    model, x, y, truth = scene
    monkeypatch.setattr(first_look, "LARGE", 0)
    # the margin certificate settles an affine model: without it the bounds of balls are asked about what is unbroken
    monkeypatch.setattr(MarginCertificate, "__call__", lambda self, model, x, y, keys, epsilons: nothing(len(x)))
    eps = float(np.sort(truth)[9]) * 0.99
    done = evaluate(model, (x, y), eps=(eps,), attacks=("superdeepfool",), diagnostics=False)
    open_ = set(np.flatnonzero(truth > eps).tolist())
    assert set(found(done, "ibp")["index"]) <= open_ and (verdicts.states(done, eps)["state"] != "untested").all()


def nothing(images):
    from robustbench_rkhs.certificates import Certified

    zeros = torch.zeros(images, dtype=torch.float64)
    return Certified(zeros, [""] * images, zeros.clone())


def test_a_false_certificate_that_it_contradicts_is_a_breach(scene, monkeypatch):
    model, x, y, _ = scene
    original = MarginCertificate.__call__

    def overstated(self, *args):
        proved = original(self, *args)
        return proved._replace(radius=proved.radius * 3)

    monkeypatch.setattr(MarginCertificate, "__call__", overstated)
    stopped(monkeypatch, counting, "counted", lambda job: not job.label.startswith("first:"))
    done = evaluate(model, (x, y), eps=(3.0,), certificates=("margin",), budget=3600.0)
    assert not done.about.complete and len(done.about.breaches) == 12
    assert {one.cause for one in done.about.breaches} == {"proof error"} and {one.attack for one in done.about.breaches} == {LABEL}


def test_a_look_that_fails_says_nothing(scene, monkeypatch):
    model, x, y, truth = scene

    def fail(self, engine):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(SuperDeepFool, "search", fail)
    settings = {"eps": (float(np.median(truth)),), "attacks": (PGD(steps=3),), "certificates": (), "diagnostics": False}
    done = evaluate(model, (x, y), budget=3600.0, **settings)
    assert done.about.complete and not done.about.failed and not len(found(done))
