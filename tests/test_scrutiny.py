"""Diagnostics in an evaluation: marks that no table hides, and survivors of a masked model that fall to the escalation."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import affine
from test_report import synthetic
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD
from robustbench_rkhs.cli.warnings import warnings_of
from robustbench_rkhs.evaluation import counting, diagnosis_job, diagnosis_phase
from robustbench_rkhs.evaluation.diagnostics import diagnose
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.reports import write_leaderboard, write_tables
from robustbench_rkhs.reports.tables import console
from robustbench_rkhs.runtime.clock import Clock
from robustbench_rkhs.verdicts import doubts, marks

QUICK = (PGD(steps=10, targets=0),)


class Rounded(nn.Module):
    """Numbers cut to a grid before a last layer: no gradient anywhere, and no attack looks through it."""

    def __init__(self, net, grid):
        super().__init__()
        self.net, self.grid = net, grid

    def forward(self, x):
        logits = (self.net(x) / self.grid).round() * self.grid
        return nn.functional.linear(logits, torch.eye(logits.shape[1]))


def masked(images=10):
    """An affine model behind rounded logits: each image's distance is the affine one, give or take the grid."""
    oracle = affine(4, (1, 4, 4), images=images)
    gap = oracle.model(oracle.x).detach().sort(1).values
    return Rounded(oracle.model, float((gap[:, -1] - gap[:, -2]).median()) / 4), oracle


def known(done, eps):
    return verdicts.states(done, eps)["state"]


def test_the_escalation_breaks_what_a_masked_model_withstood(tmp_path):
    model, oracle = masked(6)
    eps = float(2 * oracle.l2.max())
    settings = {"eps": (eps,), "attacks": QUICK, "certificates": (), "name": "rounded"}
    y = model(oracle.x).argmax(1)
    fooled = evaluate(model, (oracle.x, y), diagnostics=False, **settings)
    assert (known(fooled, eps) == "survived").all() and fooled.about.marks == ("undiagnosed",) and not fooled.about.diagnostics
    assert "undiagnosed" in str(console(fooled).title)
    assert any(line.startswith("DOUBTFUL undiagnosed: no diagnosis was run") for line in warnings_of(fooled))
    done = evaluate(model, (oracle.x, y), folder=tmp_path, **settings)
    assert (known(done, eps) == "broken").all() and {"zero_gradients", "huge_eps"} <= set(done.about.marks)
    methods = set(done.table.loc[np.isfinite(done.table["radius"]) & (done.table["kind"] == "attack"), "method"])
    assert methods and all(method.startswith("check:") for method in methods)
    by_name = {one.name: one for one in done.about.diagnostics}
    assert by_name["zero_gradients"].value == 1.0 and by_name["zero_gradients"].eps == eps
    assert verdicts.by_attack(done)["masked"].all()
    stored = verdicts.read(done.path)
    assert stored.about.diagnostics == done.about.diagnostics and stored.about.marks == done.about.marks
    assert any(line.startswith("DOUBTFUL zero_gradients: 6 of 6 right images") for line in warnings_of(done))


def test_a_budget_that_ends_with_the_diagnosis_leaves_the_escalation_to_the_next_run(tmp_path, monkeypatch):
    model, oracle = masked(6)
    eps = float(2 * oracle.l2.max())
    settings = {"eps": (eps,), "attacks": QUICK, "certificates": (), "folder": tmp_path}
    y, seconds = model(oracle.x).argmax(1), [1e9]
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "left", lambda self: seconds[0])
        patch.setattr(
            diagnosis_job, "diagnose", lambda *given, **named: (diagnose(*given, **named), seconds.__setitem__(0, 0.0))[0]
        )
        cut = evaluate(model, (oracle.x, y), budget=60, **settings)
    assert not cut.about.complete and "zero_gradients" in cut.about.marks
    assert (known(cut, eps) == "survived").any() and not cut.table["method"].str.startswith("check:").any()
    done = evaluate(model, (oracle.x, y), **settings)
    assert done.about.complete and (known(done, eps) == "broken").all()


def test_an_honest_model_is_not_marked_and_a_finished_diagnosis_is_read(tmp_path, monkeypatch):
    oracle = affine(4, (1, 4, 4), images=12)
    settings = {"eps": (float(oracle.l2.median()),), "attacks": QUICK, "certificates": (), "folder": tmp_path}
    first = evaluate(oracle.model, (oracle.x, oracle.y), **settings)
    assert first.about.marks == () and len(first.about.diagnostics) == 9 and not doubts(first)
    assert not [line for line in warnings_of(first) if "DOUBTFUL" in line]
    monkeypatch.setattr(diagnosis_job, "diagnose", lambda *_, **__: pytest.fail("diagnosed again"))
    assert evaluate(oracle.model, (oracle.x, oracle.y), **settings).about.diagnostics == first.about.diagnostics


def test_a_smoothed_classifier_is_left_to_its_certificate():
    oracle = affine(3, (1, 2, 2), images=4)
    smoothed = Smoothed(oracle.model, 0.1, votes=10, recount=10)
    done = evaluate(smoothed, (oracle.x, oracle.y), eps=(0.1,), attacks=QUICK, certificates=())
    assert done.about.marks == () == done.about.diagnostics


def test_the_eps_that_says_most_lies_where_half_stands():
    one = synthetic("m", images=60, clean=1.0, scale=0.8, proved=0.0)
    standing = {eps: verdicts.robust_images(one, eps).mean() for eps in (0.25, 0.5, 1.0)}
    assert diagnosis_phase.most_informative_eps(one) == min(standing, key=lambda eps: abs(standing[eps] - 0.5))
    nothing = replace(one, table=one.table[one.table["kind"] == "certificate"])
    assert diagnosis_phase.most_informative_eps(nothing) == 1.0


SAID = [
    {"name": "black_box", "tripped": True, "value": 0.2, "threshold": 0.05, "words": "queries break 12 of 60", "cost": 3.0},
    {"name": "huge_eps", "tripped": False, "value": 0.0, "threshold": 0.1, "words": "0 of 60 stand", "cost": 3.0},
]


def test_marks_are_read_from_any_evaluation_old_ones_have_none():
    old, new = synthetic("m"), synthetic("m", diagnostics=SAID, marks=["black_box"])
    assert marks(old) == {} == marks() and marks(old, new) == {"black_box": "queries break 12 of 60"}
    assert doubts(synthetic("m", marks=["transfer"])) == ["transfer"]
    assert marks(synthetic("m", diagnostics=None, marks=None)) == {}


def test_what_was_not_diagnosed_is_marked_until_an_evaluation_of_the_same_weights_was(tmp_path):
    off = synthetic("m", diagnostics=[], marks=["undiagnosed"])
    assert list(marks(off)) == ["undiagnosed"] and marks(off, synthetic("m", diagnostics=SAID)) == {"black_box": SAID[0]["words"]}
    assert marks(off, synthetic("m", diagnostics=SAID[1:])) == {}
    text, frame = board([off, synthetic("n")], tmp_path)
    assert (frame.set_index("model").loc["m", "marks"] == "doubtful: undiagnosed").all() and "| doubtful: undiagnosed |" in text


def test_a_budget_used_up_before_the_diagnosis_leaves_the_mark(monkeypatch):
    oracle = affine(4, (1, 4, 4), images=4)
    monkeypatch.setattr("robustbench_rkhs.evaluation.run.Clock.left", lambda self: 0.0)
    done = evaluate(oracle.model, (oracle.x, oracle.y), eps=(0.01,), attacks=QUICK, certificates=(), budget=1)
    assert not done.about.complete and done.about.marks == ("undiagnosed",)


def board(models, folder):
    md, csv = write_leaderboard(models, folder)
    return md.read_text(), pd.read_csv(csv)


def test_the_board_never_ranks_a_doubtful_model_without_its_mark(tmp_path):
    strong, weak = synthetic("strong", scale=2.0, images=40, diagnostics=SAID, marks=["black_box"]), synthetic("weak", scale=0.3)
    few = synthetic("weak", scale=0.3, images=40)
    undiagnosed = synthetic("strong", scale=2.0, images=60)  # larger, so it is the one on the board
    for models in ([strong, few], [strong, undiagnosed, weak], [undiagnosed, strong, weak]):
        text, frame = board(models, tmp_path)
        ranked = frame[frame["status"] == "ranked"].set_index("model")["marks"]
        assert ranked.loc["strong"].str.contains("doubtful: black_box").all() and ranked.loc["weak"].isna().all()
        assert text.count("- strong is doubtful: black_box: queries break 12 of 60") == 3 and "weak is doubtful" not in text
        assert text.count("| doubtful: black_box |") == 3
    text, frame = board([undiagnosed, weak], tmp_path)
    assert "is doubtful" not in text and frame["marks"].isna().all()


def test_every_table_shows_the_mark_and_its_words(tmp_path):
    one, other = synthetic("m", diagnostics=SAID), synthetic("n")
    csv, md, tex = write_tables([one, other], tmp_path / "all")
    frame = pd.read_csv(csv).set_index("model")["marks"]
    assert (frame.loc["m"] == "black_box: queries break 12 of 60").all() and frame.loc["n"].isna().all()
    assert md.read_text().count("- † m: doubtful: black_box: queries break 12 of 60") == 1 and "n: doubtful" not in md.read_text()
    assert "m: doubtful: black\\_box: queries break 12 of 60" in tex.read_text()
    assert "DOUBTFUL: black_box" in str(console(one).title) and "DOUBTFUL" not in str(console(other).title)


def test_escalation_leaves_out_what_withstood_it_at_a_larger_eps(monkeypatch):
    model, oracle = masked(6)
    queried = []
    original = counting.counted

    def watched(subject, job):
        if job.label.startswith("check:"):
            queried.append((job.method.eps, job.method.label, list(job.index)))
        return original(subject, job)

    monkeypatch.setattr(counting, "counted", watched)
    monkeypatch.setattr(diagnosis_phase, "escalated", lambda protocol, marks: QUICK)
    near = float(oracle.l2.min())
    y = model(oracle.x).argmax(1)
    evaluate(model, (oracle.x, y), eps=(0.2 * near, 0.1 * near), attacks=QUICK, certificates=())
    assert [eps for eps, *_ in queried] == [0.2 * near] and queried[0][2] == list(range(6))
    assert torch.equal(model(oracle.x).argmax(1), y)
