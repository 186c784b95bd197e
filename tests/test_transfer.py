"""An undefended twin in an evaluation: what breaks it is tried on the model, counted, compared, and named by its digest."""

import numpy as np
import pytest
import torch
from oracles import affine
from test_cli import home, rkhs  # noqa: F401
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD
from robustbench_rkhs.cli.warnings import warnings_of
from robustbench_rkhs.evaluation import counting, diagnosis_phase
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.nodes.node import UserError

QUICK = (PGD(steps=5, targets=0),)
COUNT = 10


class Reversed(torch.autograd.Function):
    """The identity, whose gradient points the other way."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return -gradient


class Lying(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(Reversed.apply(x))


@pytest.fixture
def lied():
    oracle = affine(4, (1, 4, 4), images=COUNT)
    return Lying(oracle.model).eval(), oracle


@pytest.fixture
def still(monkeypatch):
    """No escalation: what transfers is looked at alone."""
    monkeypatch.setattr(diagnosis_phase, "escalated", lambda protocol, marks: ())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_what_breaks_the_twin_is_counted_where_false_gradients_hid_it(lied, norm, still):
    model, oracle = lied
    truth = oracle.distance(norm)
    eps = (float(1.3 * truth.max()), float(truth.median()))
    settings = {"eps": eps, "norm": norm, "attacks": QUICK, "certificates": ()}
    fooled = evaluate(model, (oracle.x, oracle.y), diagnostics=False, **settings)
    assert all((verdicts.states(fooled, one)["state"] == "survived").all() for one in eps) and fooled.about.twin is None
    done = evaluate(model, (oracle.x, oracle.y), twin=oracle.model, **settings)
    assert (verdicts.states(done, eps[0])["state"] == "broken").all()
    lower = verdicts.states(done, eps[1])["state"]
    for index, radius in enumerate(truth.tolist()):
        if radius > eps[1] * (1 + 1e-6):
            assert lower[index] == "survived"
        elif radius * 1.1 < eps[1]:
            assert lower[index] == "broken"
    rows = done.table[(done.table["kind"] == "attack") & np.isfinite(done.table["radius"])]
    assert set(rows["method"]) == {"transfer"} and (rows["radius"] <= rows["eps"]).all() and "transfer" not in done.about.protocol
    assert (rows["backwards"] > 0).all() and verdicts.by_attack(done)["masked"].any()
    by_name = {one.name: one for one in done.about.diagnostics}
    assert by_name["transfer"].tripped and "transfer" in done.about.marks
    assert by_name["transfer"].twin == done.about.twin == key_of(oracle.model)
    assert any(done.about.twin[:12] in line for line in warnings_of(done))


def test_an_honest_model_is_not_marked_by_its_twin_which_is_left_as_it_was(still):
    oracle, other = affine(4, (1, 4, 4), images=COUNT), affine(4, (1, 4, 4), seed=1).model.train()
    other[1].weight.grad = torch.ones_like(other[1].weight)
    eps = float(oracle.l2.median())
    done = evaluate(oracle.model, (oracle.x, oracle.y), eps=(eps,), attacks=QUICK, certificates=(), twin=other)
    by_name = {one.name: one for one in done.about.diagnostics}
    assert not by_name["transfer"].tripped and done.about.marks == ()
    tried = set(done.table.loc[done.table["method"] == "transfer", "index"])
    states = verdicts.states(done, eps)["state"]
    assert tried == set(states.index[states == "survived"]) and tried
    assert other.training and (other[1].weight.grad == 1).all() and other[1].weight.requires_grad


def test_a_part_is_of_its_twin(lied, tmp_path, monkeypatch, still):
    model, oracle = lied
    settings = {"eps": (float(oracle.l2.median()),), "attacks": QUICK, "certificates": (), "folder": tmp_path}
    first = evaluate(model, (oracle.x, oracle.y), twin=oracle.model, **settings)
    queried, original = [], counting.counted

    def watched(subject, job):
        queried.append(job.label)
        return original(subject, job)

    monkeypatch.setattr(counting, "counted", watched)
    again = evaluate(model, (oracle.x, oracle.y), twin=oracle.model, **settings)
    assert not queried and verdicts.digest(again.table) == verdicts.digest(first.table) and again.path == first.path
    other = evaluate(model, (oracle.x, oracle.y), twin=affine(4, (1, 4, 4), seed=1).model, **settings)
    assert set(queried) == {"transfer"} and other.about.twin != first.about.twin and other.path != first.path
    alone = evaluate(model, (oracle.x, oracle.y), **settings)
    assert not (alone.table["method"] == "transfer").any() and alone.path not in (first.path, other.path)


BAD = {
    "other classes": (affine(3, (1, 4, 4)).model, "twin: expected logits of 4 classes, the model returned 3"),
    "other images": (affine(4, (1, 3, 3)).model, r"twin: the model cannot take images of shape \(1, 4, 4\)"),
    "itself": (affine(4, (1, 4, 4)).model, "found the model itself"),
}


@pytest.mark.parametrize(("twin", "line"), BAD.values(), ids=BAD.keys())
def test_a_twin_that_is_none_is_refused(twin, line):
    oracle = affine(4, (1, 4, 4), images=3)
    with pytest.raises(UserError, match=line):
        evaluate(oracle.model, (oracle.x, oracle.y), eps=(0.1,), attacks=QUICK, certificates=(), twin=twin)


def test_the_command_takes_a_twin_and_says_in_a_line_what_is_none(home):  # noqa: F811
    tiny = ["--epochs", "1", "--data.train", "100", "--data.validation", "50"]
    rkhs("train", "--model", "digits_mlp", "--seed", "1", "--out", "checkpoints/twin", *tiny, folder=home)
    flags = ["--model", "digits_mlp", "--eps", "0.1", "--attack", "pgd:steps=2", "--samples", "6", "--certify", "none"]
    out, _ = rkhs("evaluate", *flags, "--twin", "checkpoints/twin", folder=home)
    assert "transfer from the twin" in out
    draws, y = np.random.default_rng(0), np.arange(60) % 10
    x = draws.random((60, 1, 8, 8), dtype=np.float32)
    np.savez(home / "other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    settings = "about: other\ndata: {name: npz, path: other.npz, validation: 10}\nnetwork: {name: mlp, hidden: [8]}\nepochs: 1\n"
    (home / "other.yaml").write_text(settings)
    rkhs("train", "--model", "other.yaml", "--out", "checkpoints/other", folder=home)
    mistakes = {
        "nowhere": "nowhere",
        "digits_mlp": "found the model itself",
        "checkpoints/other": "expected a network of the data of 'digits_mlp'",
    }
    for name, line in mistakes.items():
        _, said = rkhs("evaluate", *flags, "--twin", name, folder=home, code=2)
        assert said.startswith("error: ") and said.count("\n") == 1 and line in said
