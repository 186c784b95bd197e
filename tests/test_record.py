"""The typed record of an evaluation: what it answers, what it refuses, and that files written before it was typed are read."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracles import affine
from pydantic import ValidationError

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.verdicts import About, Breach, Diagnosis, Evaluation, Rechecked
from robustbench_rkhs.verdicts.store import METADATA, SEAL

mpl.use("Agg")
BEFORE = sorted((Path(__file__).parent.parent / "reports" / "verdicts").glob("*/*.parquet"))
"""Tables that the repository holds, some of them written before the record was typed."""
ORACLE = affine(4, (1, 3, 3), images=10)
EPS = float(ORACLE.l2.sort().values[4:6].mean())
SETTINGS = {"eps": (EPS,), "attacks": (PGD(steps=10),), "diagnostics": False}


@pytest.fixture(scope="module")
def done():
    return evaluate(ORACLE.model, (ORACLE.x, ORACLE.y), certificates=({"name": "margin"},), **SETTINGS)


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.stem)
def test_tables_written_before_are_read_and_written_again_word_for_word(path, tmp_path):
    stored = json.loads(pq.read_schema(path).metadata[b"robustbench_rkhs"])
    again = verdicts.read(path)
    assert again.path == path and json.loads(json.dumps(again.about.plain())) == {key: stored[key] for key in again.about.plain()}
    assert set(stored) - {"format"} == set(again.about.plain())  # files say which version wrote them
    copy = verdicts.write(again, tmp_path / "copy.parquet")
    assert verdicts.read(copy).about == again.about
    assert verdicts.digest(verdicts.read(copy).table) == verdicts.digest(again.table)


def test_the_record_is_frozen_typed_and_says_what_it_was_given():
    about = About(model="m", weights="w", data="d", norm="l2", box="unit", epsilons=[0.5], protocol=["pgd"])
    assert (
        about.epsilons == (0.5,)
        and about.rechecked == Rechecked(0, 0)
        and set(about.plain())
        == set(About.model_fields) - {key for key, field in About.model_fields.items() if not field.is_required()}
    )
    with pytest.raises(ValidationError):
        about.norm = "linf"
    with pytest.raises(UserError, match="did you mean 'model'"):
        about.but(modle="x")
    with pytest.raises(UserError, match="norm"):
        about.but(norm="l7")
    full = about.but(breaches=[Breach(1, "pgd", 0.1, 0.2, "proof error")], diagnostics=[Diagnosis("a", True, 1.0, 0.5, "w", 2.0)])
    assert About.read(json.loads(json.dumps(full.plain())), "here") == full
    with pytest.raises(FrozenInstanceError):
        full.breaches[0].index = 2


def rewrite(table, said, path):
    """The same table with other fields, sealed anew: what another version of this library might have written."""
    fields = {**table.schema.metadata, METADATA: json.dumps(said).encode(), SEAL: seals.BLANK.encode()}
    seals.write_sealed(path, lambda temporary: pq.write_table(table.replace_schema_metadata(fields), temporary))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm": None}, "does not say its norm"),
        ({"epsilons": "many"}, "epsilons"),
        ({"breaches": [{"index": 1}]}, "breaches"),
        ({"outside": 3}, "outside"),
    ],
)
def test_a_file_whose_fields_are_missing_or_wrong_is_one_line_with_its_path(change, words, tmp_path, done):
    path = verdicts.write(done, tmp_path / "table.parquet")
    table = pq.read_table(path)
    said = {
        key: value for key, value in (json.loads(table.schema.metadata[b"robustbench_rkhs"]) | change).items() if value is not None
    }
    rewrite(table, said, path)
    with pytest.raises(UserError) as refused:
        verdicts.read(path)
    assert words in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_fields_of_a_later_version_are_left_out(tmp_path, done):
    path = verdicts.write(done, tmp_path / "table.parquet")
    table = pq.read_table(path)
    said = json.loads(table.schema.metadata[b"robustbench_rkhs"]) | {"colour": "blue"}
    rewrite(table, said, path)
    assert verdicts.read(path).about == done.about


def test_accuracies_are_those_of_the_table_and_of_the_truth(done):
    right = (ORACLE.model(ORACLE.x).argmax(1) == ORACLE.y).numpy()
    truth = float((right & (ORACLE.l2.numpy() > EPS)).mean())
    assert done.robust_accuracy(EPS) == truth == float(done.summary()["robust"].iloc[0])
    assert 0 < done.certified_accuracy(EPS / 2) <= float((right & (ORACLE.l2.numpy() >= EPS / 2)).mean())
    assert done.certified_accuracy(0.0) == float(right.mean()) and list(done.summary([0.0, EPS])["eps"]) == [0.0, EPS]
    beyond, unproved = EPS * 1.0001, Evaluation(done.table[done.table["method"] != "margin"], done.about)
    with pytest.raises(UserError, match="withheld"):
        unproved.robust_accuracy(beyond)
    low, high = unproved.robust_range(beyond)
    assert low == unproved.certified_accuracy(beyond) == 0 and low < high == truth


def test_adversarial_images_are_tensors_that_break_the_model_where_they_say(done):
    found = done.adversarials()
    assert all(isinstance(part, torch.Tensor) for part in found) and len(found.index) > 0
    assert (ORACLE.model(found.images).argmax(1) != found.labels).all()
    assert (ORACLE.model(found.images).argmax(1) == found.predictions).all() and (ORACLE.y[found.index] == found.labels).all()
    away = (found.images - ORACLE.x[found.index]).double().flatten(1).norm(dim=1)
    assert torch.allclose(away, found.distances, rtol=1e-6)
    states = verdicts.states(done, EPS)["state"]
    assert sorted(found.index[found.distances <= EPS].tolist()) == sorted(states.index[states.isin(["broken", "wrong"])])


def test_adversarial_images_are_kept_where_asked_for_and_missed_in_one_line(tmp_path):
    settings = {**SETTINGS, "certificates": ()}
    plain = evaluate(ORACLE.model, (ORACLE.x, ORACLE.y), folder=tmp_path, **settings)
    for without in (plain, verdicts.read(plain.path), evaluate(ORACLE.model, (ORACLE.x, ORACLE.y), adversarials=False, **settings)):
        with pytest.raises(UserError, match="adversarials=True"):
            without.adversarials()
    kept = evaluate(ORACLE.model, (ORACLE.x, ORACLE.y), folder=tmp_path, adversarials=True, **settings)
    assert len(kept.adversarials().index) and verdicts.digest(kept.table) == verdicts.digest(plain.table)
    half = evaluate(ORACLE.model.half(), (ORACLE.x.half(), ORACLE.y), **settings)
    ORACLE.model.float()
    with pytest.raises(UserError, match="no adversarial images"):
        half.adversarials()


def test_a_plot_shows_both_accuracies_on_the_axes_given_or_new_ones(done):
    axes = done.plot()
    assert axes is done.plot(axes)
    labels = " ".join(text.get_text() for text in axes.get_legend().get_texts())
    assert "certified: proved" in labels and "not broken" in labels and axes.get_xlabel().startswith("l2")
    assert "model" in axes.get_title(loc="left") and axes.figure.get_axes() == [axes]


def test_a_notebook_shows_a_table_with_its_doubts_and_nothing_of_the_names_as_markup(done):
    html = done._repr_html_()
    assert html.startswith("<table>") and f"{EPS:.4g}" in html and f"{done.robust_accuracy(EPS):.1%}" in html
    assert "DOUBTFUL undiagnosed" in html
    evil = Evaluation(done.table, done.about.but(model="<script>"))
    assert "<script>" not in evil._repr_html_() and "&lt;script&gt;" in evil._repr_html_()
    unproved = done.table[done.table["method"] != "margin"]
    assert "withheld: 0.0%" in Evaluation(unproved, done.about.but(epsilons=(EPS * 1.0001,)))._repr_html_()


def test_a_record_is_shown_in_one_line(done):
    assert repr(done) == f"Evaluation(model on arrays, l2, eps {EPS:.4g}: 10 images)"
    assert np.isfinite(len(repr(done)))
