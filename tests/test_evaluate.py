"""Evaluation: the affine truth, a masked attack unmasked, killing changes nothing, bad models refused."""

import signal
import time
from typing import Literal

import numpy as np
import pytest
import torch
from killed import told_by
from oracles import affine, masking_model
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD, Attacked, AutoAttack, FoolboxAttack, PublishedPGD
from robustbench_rkhs.certificates import CrownCertificate
from robustbench_rkhs.evaluation import counting
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError

QUICK = (PGD(steps=20),)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))


def images(n=24, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, generator=generator)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_affine_model_is_certified_and_broken_at_its_true_radius(norm):
    model, x, y, l2, linf = affine(classes=4, shape=(1, 4, 4))
    truth = l2 if norm == "l2" else linf
    eps = float(truth.median())
    done = evaluate(model, (x, y), eps=(eps,), norm=norm, attacks=QUICK, diagnostics=False)
    states = verdicts.states(done, eps)["state"]
    for index, radius in enumerate(truth.tolist()):
        if radius * 1.05 < eps:
            assert states[index] == "broken"
        if radius > eps * (1 + 2e-3) and norm == "l2":  # less by what float32 is proved to err by at most
            assert states[index] == "certified"
        if radius > eps * (1 + 1e-5):
            assert states[index] != "broken"
    assert verdicts.breaches(done).empty
    certificates = done.table[done.table["method"] == "margin"].set_index("index")["radius"]
    if norm == "l2":
        np.testing.assert_allclose(certificates.to_numpy(), truth.numpy(), rtol=2e-3)
    assert (certificates.to_numpy() <= truth.double().numpy() * (1 + 1e-6)).all()


ATTACKS = {
    "pgd": PGD(steps=20),
    "deepfool": FoolboxAttack(attack="deepfool"),
    "ddn": FoolboxAttack(attack="ddn"),
    "autoattack": AutoAttack(version="custom", attacks=("apgd-ce",)),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_confident_linear_model_has_no_robustness_at_one(attack):
    model, x, y, *_ = masking_model()
    done = evaluate(model, (x, y), eps=(1.0,), attacks=(attack,), diagnostics=False)
    row = verdicts.summary(done).iloc[0]
    assert row["clean"] == 1.0 and row["robust"] == 0.0


def test_the_published_attack_is_marked_as_masked_on_it():
    model, x, y, *_ = masking_model()
    done = evaluate(model, (x, y), eps=(1.0,), attacks=(PublishedPGD(),), diagnostics=False)
    alone = verdicts.by_attack(done).set_index("attack").loc["published"]
    assert alone["masked"] and alone["overstated"] == 1.0
    assert verdicts.summary(done).iloc[0]["robust"] == 0.0


def test_certified_images_are_audited_and_not_attacked_otherwise():
    model, x, y, l2, _ = affine(classes=3, shape=(1, 4, 4))
    eps = float(l2.quantile(0.4))
    done = evaluate(model, (x, y), eps=(eps,), attacks=QUICK, diagnostics=False)
    table = done.table
    certified = set(table[(table["method"] == "margin") & (table["radius"] >= eps)]["index"])
    assert certified and certified == set(table[table["method"] == "audit:superdeepfool"]["index"])
    assert not certified & set(table[table["method"] == "pgd"]["index"])


def test_a_wrong_certificate_is_caught(monkeypatch):
    from robustbench_rkhs.certificates import MarginCertificate

    original = MarginCertificate.__call__

    def overstated(self, *args):
        found = original(self, *args)
        return found._replace(radius=found.radius * 1.5)

    monkeypatch.setattr(MarginCertificate, "__call__", overstated)
    model, x, y, l2, _ = affine(classes=3, shape=(1, 4, 4))
    done = evaluate(model, (x, y), eps=(float(l2.median()),), attacks=QUICK, diagnostics=False)
    assert done.about.breaches and {b.cause for b in done.about.breaches} == {"proof error"}


def test_the_model_is_left_as_it_was_and_blocks_do_not_matter_to_pgd():
    model = small_net().train()
    x = images()
    y = model(x).argmax(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = {"eps": (0.1, 0.3), "attacks": (PGD(steps=5, restarts=2),), "diagnostics": False}
    tables = [evaluate(model, (x, y), block=block, **settings).table for block in (7, 24)]
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    keys = ["method", "eps", "index"]
    first, second = (t[t["kind"] == "attack"].sort_values(keys)[[*keys, "radius"]].reset_index(drop=True) for t in tables)
    assert (np.isinf(first["radius"]) == np.isinf(second["radius"])).all()


class Softmax(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4].softmax(1)


class Nan(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4] * torch.nan


class Vector(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, 0]


BAD_MODELS = {
    "probabilities": (Softmax(), "returns probabilities"),
    "NaN": (Nan(), "returned NaN or infinity on 24 of 24"),
    "too many classes": (nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), "expected logits of 4 classes, the model returned 5"),
    "wrong input": (nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), r"cannot take images of shape \(1, 4, 4\)"),
    "no logits": (Vector(), "expected logits of shape"),
}


@pytest.mark.parametrize("model, line", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_that_returns_no_logits_is_refused(model, line):
    from robustbench_rkhs.data import Split

    split = Split("arrays", "test", images(), torch.arange(24) % 4, torch.arange(24), 4, "0" * 64)
    with pytest.raises(UserError, match=line) as caught:
        evaluate(model, split, eps=(0.1,), attacks=QUICK)
    assert "\n" not in str(caught.value)


BAD_ASKS = {
    "eps above l2 range": (dict(eps=(5.0,)), "eps 5 is above the data range"),
    "eps above linf range": (dict(eps=(1.5,), norm="linf"), "eps 1.5 is above"),
    "negative": (dict(eps=(-0.1,)), "greater than or equal to 0"),
    "no eps": (dict(eps=()), "at least one eps"),
    "certificate": (dict(eps=(0.1,), certificates=("magin",)), "did you mean 'margin'"),
    "samples": (dict(eps=(0.1,), samples=25), "1 to 24 samples"),
    "box of a certificate": (
        dict(eps=(0.1,), attacks=(PGD(box="none"),), certificates=(CrownCertificate(box="unit"),)),
        r"crown.* proves nothing outside \[0, 1\]: expected box 'none'",
    ),
    "boxes": (dict(eps=(0.1,), attacks=(PGD(), PublishedPGD())), "run them apart"),
}


@pytest.mark.parametrize("queried, line", BAD_ASKS.values(), ids=BAD_ASKS.keys())
def test_a_bad_ask_is_refused(queried, line):
    with pytest.raises(UserError, match=line):
        evaluate(small_net(), (images(), torch.arange(24) % 4), **({"attacks": QUICK} | queried))


@pytest.mark.parametrize(
    "x, y, line",
    [
        (images() * 2, torch.zeros(24).long(), r"in \[0, 1\]"),
        (images(), torch.full((24,), 4), r"expected labels 0 to 3 \(the model has 4 classes\), found 4 to 4"),
        (images(), torch.zeros(3).long(), "one label per image"),
        (torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2).long(), "finite"),
    ],
)
def test_bad_images_and_labels_are_refused(x, y, line):
    with pytest.raises(UserError, match=line):
        evaluate(small_net(), (x, y), eps=(0.1,), attacks=QUICK)


def test_a_model_without_a_rule_is_refused_a_certificate_by_name_and_still_attacked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.GLU(), nn.Linear(8, 4))
    x = images()
    done = evaluate(model, (x, model(x).argmax(1)), eps=(0.1,), attacks=QUICK, diagnostics=False)
    assert (done.table[done.table["method"] == "margin"]["state_reason"] == "refused").all()
    assert "GLU" in done.about.refused[0]
    assert verdicts.summary(done).iloc[0]["robust"] >= 0


class Turned(nn.Module):
    """No weights at all: only its code tells two of them apart."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        return self.sign * x.flatten(1)[:, :4]


def test_code_that_changed_is_not_served_old_parts(tmp_path):
    x = images()
    y = x.flatten(1)[:, :4].argmax(1)
    first, second = (
        evaluate(Turned(sign), (x, y), eps=(0.1,), attacks=QUICK, certificates=(), folder=tmp_path, name="same")
        for sign in (1.0, 2.0)
    )
    assert first.about.weights == second.about.weights
    parts = sum(not path.name.startswith("answers-") for path in (tmp_path / "same" / "parts").iterdir())
    assert parts == 2 * 2  # a block and the diagnosis, once for each code


class Broken(PGD):
    name: Literal["broken"] = "broken"

    def __call__(self, model, x, y, keys, eps=None) -> Attacked:
        raise RuntimeError("out of luck")


def test_an_attack_that_fails_leaves_images_untested():
    model = small_net()
    x = images()
    done = evaluate(model, (x, model(x).argmax(1)), eps=(0.01,), attacks=(Broken(),), certificates=(), diagnostics=False)
    assert (verdicts.states(done, 0.01)["state"] == "untested").all()
    with pytest.raises(UserError, match="untested"):
        verdicts.accuracy_at(done, 0.01)


def evaluated(folder, slow, tell):
    """An evaluation of ten blocks; each part is told before it runs, and at the end the table's digest and completeness."""
    original = counting.counted

    def slowly(*args, **kwargs):
        tell("part")
        time.sleep(slow)
        return original(*args, **kwargs)

    model, x = small_net(), images(40)
    attacks = (PGD(steps=5, start="random"), FoolboxAttack(attack="ddn", steps=50))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "counted", slowly)
        data = (x, model(x).argmax(1))
        done = evaluate(model, data, eps=(0.05, 0.2), attacks=attacks, block=4, folder=folder, name="net", diagnostics=False)
    tell((verdicts.digest(done.table), done.about.complete))


def unbroken(folder):
    """All that it tells in this process, where nothing stops it."""
    told = []
    evaluated(folder, 0.0, told.append)
    return told


def test_a_killed_evaluation_started_again_gives_the_same_table(tmp_path):
    *parts, (whole, complete) = unbroken(tmp_path / "whole")
    assert complete and len(parts) > 10
    for after in (2, 6):
        told, code = told_by(evaluated, tmp_path / "killed", 0.1, after=after)
        assert set(told) == {"part"} and code == -signal.SIGKILL
    assert unbroken(tmp_path / "killed")[-1] == (whole, True)


def test_ctrl_c_leaves_a_valid_partial_table(tmp_path):
    told, _ = told_by(evaluated, tmp_path / "net", 0.2, after=4, how=signal.SIGINT)
    digest, complete = told[-1]
    assert not complete
    path = next((tmp_path / "net" / "net").glob("*.parquet"))
    partial = verdicts.read(path)
    assert not partial.about.complete and len(verdicts.states(partial, 0.05)) == 40
    assert verdicts.summary(partial)["robust"].isna().any()
    again = unbroken(tmp_path / "net")[-1]
    assert again[1] and again[0] != digest
