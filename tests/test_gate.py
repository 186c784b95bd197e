"""The gate: a submission changes nobody else's row, but for confirmed adversarial images of that very function."""

import json
import shutil

import pandas as pd
import pytest
import torch
import yaml
from forger import resealed
from test_cli import rkhs

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports import write_leaderboard
from robustbench_rkhs.reports.update import Updated
from robustbench_rkhs.submission import gate
from robustbench_rkhs.submission.effect import refused_change
from robustbench_rkhs.submission.look_alikes import looks_like, skeleton
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe

SETTINGS = {"eps": (0.05, 0.5), "attacks": (DDN(steps=5),), "certificates": ("margin",), "diagnostics": False, "samples": 40}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with the checkpoint `first`, evaluated; figures and the process of its own are left out."""
    monkeypatch.chdir(tmp_path)

    def board_alone(out):
        tables = [one for place in ("verdicts", "submitted") for one in verdicts.read_all(out / place)]
        return Updated({"leaderboard": write_leaderboard(tables, out)})

    def here(path, name, recipes, device, folder, command, limits):
        loaded = checkpoint.load(path)
        for recipe in recipes:
            done = evaluate(loaded.model, loaded.recipe.data.test(), recipe, name=name, folder=folder)
            yield verdicts.read(done.path)

    monkeypatch.setattr(gate, "update", board_alone)
    monkeypatch.setattr(gate, "evaluations", here)  # a process of its own takes seconds to begin
    recipe = TrainRecipe.read("digits_sandwich", {"network.hidden": "[16]"})
    test = recipe.data.test()
    model = checkpoint.build(recipe, test.shape, 10)
    x = test.x[:300].flatten(1)
    with torch.no_grad():  # some images are right: each class answers its mean
        model[-1].bias.zero_()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(20 * model(x.view(-1, 1, 8, 8)), test.y[:300]).backward()
        optimizer.step()
    checkpoint.save(tmp_path / "first", recipe, test, model.eval().state_dict(), "# card\n")
    evaluate(checkpoint.load("first").model, test, EvalRecipe(**SETTINGS), name="first", folder=tmp_path / "out/verdicts")
    return tmp_path


def sent(home, name, line=None, **config):
    """A copy of `first` under another name, with a line of its recipe changed and whatever a forger thinks of."""
    shutil.copytree(home / "first", home / name)
    if line:
        stored = yaml.safe_load((home / name / "recipe.yaml").read_text())
        (home / name / "recipe.yaml").write_text(yaml.safe_dump(stored | {"network": stored["network"] | line}))
        found = json.loads((home / name / "config.json").read_text())
        found |= {"network": found["network"] | line, "logits": None}
        (home / name / "config.json").write_text(json.dumps(found))
        resealed(home / name)
    return home / name


def submit(home, folder, **settings):
    return list(gate.submit(folder, EvalRecipe(**SETTINGS | settings), sample=10, device="cpu", out=home / "out"))


def board(home):
    return pd.read_csv(home / "out/leaderboard.csv").set_index(["model", "eps"])


def public(home, name):
    return board(home).loc[name].drop(columns=["rank", "marks"])


def test_the_same_tensors_in_another_network_are_a_model_of_its_own(home):
    """The fault: a line of the recipe was changed, tensors and digests were not; what broke the copy refused the original."""
    write_leaderboard(verdicts.read_all(home / "out/verdicts"), home / "out")
    before = public(home, "first")
    folder = sent(home, "steep", {"lipschitz": 10.0})
    assert checkpoint.load(folder).weights == checkpoint.load(home / "first").weights
    assert "accepted" in " ".join(submit(home, folder))
    found = evaluate(
        checkpoint.load(folder).model, checkpoint.load(folder).recipe.data.test(), EvalRecipe(**SETTINGS), adversarials="its.npz"
    )
    assert len(found.nearest.index)
    list(gate.submit_adversarials(home / "its.npz", model=str(folder), device="cpu", out=home / "out"))
    after = board(home)
    assert (after["status"] == "ranked").all() and set(after.index.get_level_values(0)) == {"first", "steep"}
    pd.testing.assert_frame_equal(public(home, "first"), before)
    one, other = (verdicts.read_all(home / "out/verdicts" / name)[0] for name in ("first", "steep"))
    assert one.about.weights == other.about.weights and not verdicts.same_function(one.about, other.about)
    assert len(verdicts.pooled(one, [other]).table) == len(one.table)
    (given,) = verdicts.read_all(home / "out/submitted")
    assert (
        given.about.key == other.about.key == key_of(checkpoint.load(folder).model) and given.about.header["key"] == given.about.key
    )
    with pytest.raises(UserError, match=r"none of its .* images is confirmed"):  # its header names the copy's function
        list(gate.submit_adversarials(home / "its.npz", model=str(home / "first"), device="cpu", out=home / "out"))


def test_one_function_under_two_names_is_one_entry(home):
    before = public_of(home)
    said = submit(home, sent(home, "aaa"), samples=60)  # more images, and a name before the other
    assert any("the same function as first, whose row stays: also evaluated as aaa" in line for line in said)
    after = board(home)
    assert set(after.index.get_level_values(0)) == {"first"} and after["marks"].str.contains("also evaluated as aaa").all()
    figures = ["images", "clean", "certified", "date", "attacks"]
    pd.testing.assert_frame_equal(public(home, "first")[figures], before[figures])
    assert "also evaluated as aaa" in (home / "out/leaderboard.md").read_text()
    (copy,) = verdicts.read_all(home / "out/verdicts/aaa")
    assert copy.about.submitted and not verdicts.read_all(home / "out/verdicts/first")[0].about.submitted


def public_of(home):
    write_leaderboard(verdicts.read_all(home / "out/verdicts"), home / "out")
    return public(home, "first")


def test_whatever_else_changes_a_row_is_held_for_a_person(home, monkeypatch):
    before = public_of(home)
    moved = home / "elsewhere"
    moved.mkdir()
    shutil.copytree(home / "first", moved / "first")
    with pytest.raises(UserError, match=r"first is held for manual review: the row of first would change: .*, then"):
        submit(home, moved / "first", samples=60)  # its own name again, by more images
    steep = sent(home, "steep", {"lipschitz": 10.0})
    monkeypatch.setattr("robustbench_rkhs.verdicts.soundness.same_function", lambda one, other: one.weights == other.weights)
    monkeypatch.setattr("robustbench_rkhs.reports.entries.functions", lambda evaluations: [0] * len(evaluations))
    with pytest.raises(
        UserError, match="steep is held for manual review: the row of first, which is another function, would change"
    ):
        submit(home, steep)
    assert not (home / "out/verdicts/steep").exists()
    pd.testing.assert_frame_equal(public(home, "first"), before)


def test_confirmed_images_of_the_very_function_may_refuse_its_row(home):
    (one,) = verdicts.read_all(home / "out/verdicts")
    claim = one.table[(one.table["kind"] == "certificate") & (one.table["radius"] > 0)].iloc[[0]]
    about = one.about.but(epsilons=(), protocol=())
    fall = {"kind": "attack", "method": "submitted", "radius": 1e-3, "distance_l2": 1e-3, "distance_linf": 1e-3, "state_reason": ""}
    said = one.table[(one.table["method"] == "prediction") & (one.table["index"] == claim["index"].iloc[0])]
    images = verdicts.Evaluation(pd.concat([said, claim.assign(**fall)], ignore_index=True), about)
    assert refused_change([one], images) == ""
    foreign = verdicts.Evaluation(images.table, about.but(key="0" * 64))
    assert refused_change([one], foreign) == ""  # of another function, they change nothing
    (entry,) = gate_rows([one, images])
    assert entry.status == "refused" and gate_rows([one, foreign])[0].status == "ranked"


def gate_rows(evaluations):
    from robustbench_rkhs.reports.entries import board as entries

    return next(iter(entries(evaluations).values()))


def test_equal_keys_with_other_logits_are_not_taken_for_one(home):
    (one,) = verdicts.read_all(home / "out/verdicts")
    about = one.about
    other = about.but(logits=tuple(tuple(value * 1.001 for value in row) for row in about.logits))
    nearly = about.but(logits=tuple(tuple(value * 1.00001 for value in row) for row in about.logits))
    assert len(about.logits) == 8 and not verdicts.same_function(about, other) and verdicts.same_function(about, nearly)
    assert not verdicts.same_function(about, about.but(key=""))
    assert verdicts.functions([verdicts.Record(one.table, a) for a in (about, other, nearly)]) == [0, 1, 0]


def test_a_table_without_logits_that_carries_another_functions_key_is_a_function_of_its_own(home):
    (one,) = verdicts.read_all(home / "out/verdicts")
    bare = one.about.but(logits=())
    assert not verdicts.same_function(one.about, bare) and verdicts.same_function(bare, bare.but(date="2020-01-01"))
    assert not verdicts.same_function(bare, bare.but(model="other")) and not verdicts.same_function(bare, bare.but(weights="w"))
    rows = one.table[one.table["kind"] == "attack"]  # it "breaks" every image at a tiny distance
    broken = rows.assign(model="forged", radius=1e-6, distance_l2=1e-6, distance_linf=1e-6, state_reason="")
    said = one.table[one.table["kind"] == "certificate"].assign(model="forged")
    forged = verdicts.Evaluation(pd.concat([said, broken], ignore_index=True), bare.but(model="forged"))
    assert len(verdicts.pooled(one, [forged]).table) == len(one.table)
    entries = {entry.brief.about.model: entry for entry in gate_rows([one, forged])}
    assert entries["first"].public == gate_rows([one])[0].public
    assert "unverified: it has the key of first, and no logits that show it" in entries["forged"].marks


@pytest.mark.parametrize("name", ["First", "f1rst", "fіrst", "ｆirst", "fir\u200bst", "FIRST"])
def test_names_that_read_alike_are_one_name(name):
    assert skeleton(name) == skeleton("first") and looks_like(name, ["second", "first"]) == "first"


def test_names_that_read_otherwise_are_two():
    assert looks_like("first", ["first", "second", "first_2", "fist"]) == "" and looks_like("digits-mlp", ["digits_mlp"])


def test_a_name_that_reads_like_another_is_refused_at_the_gate(home):
    for name, other in (("F1rst", "first"), ("Digits-MLP", "digits_mlp")):
        with pytest.raises(UserError, match=f"'{name}' reads like '{other}', which is listed"):
            submit(home, sent(home, name))
    sent(home, "other/first", {"lipschitz": 10.0})
    with pytest.raises(UserError, match="'first' is the name of another function on the leaderboard"):
        submit(home, home / "other/first")


def test_a_budget_that_ends_first_decides_nothing_and_ends_with_code_3(home):
    folder = sent(home, "second", {"lipschitz": 2.0})
    words = ["checkpoint", str(folder), "--eps", "0.05", "0.5", "--attack", "ddn:steps=5", "--certify", "margin", "--samples", "40"]
    words += ["--no-diagnostics", "--device", "cpu", "--out", "out"]
    out, err = rkhs("submit", *words, "--budget", "0.001s", "--json", folder=home, code=3)
    found = json.loads(out)
    assert (found["accepted"], found["complete"], found["incomplete_because"]) == (False, False, "budget")
    assert "ran out of its budget" in found["reason"] and "ran out of its budget" in err
    assert not (home / "out/verdicts/second").exists()
    rkhs("submit", *words, folder=home, code=0)
    assert list((home / "out/verdicts/second").glob("*.parquet"))
