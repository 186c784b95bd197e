"""Reports: the same table gives the same bytes, numbers stand where they belong, the unsound is not ranked."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from robustbench_rkhs import verdicts
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports import draw_curve, draw_tradeoff, report, write_leaderboard, write_tables
from robustbench_rkhs.reports.entries import best_of
from robustbench_rkhs.reports.tables import console, console_attacks, csv, csv_of, markdown
from robustbench_rkhs.runtime.sinks import for_latex
from robustbench_rkhs.verdicts import About, Brief, Evaluation

EPSILONS = (0.25, 0.5, 1.0)


def synthetic(name, images=60, clean=0.9, scale=0.8, proved=0.4, seed=0, minimal=False, **about):
    """A model with exponential robust radii, certified up to `proved` of them, attacked by one exact attack."""
    random = np.random.default_rng(seed)
    truth, right = random.exponential(scale, images), random.random(images) < clean
    rows = []
    for i in range(images):
        image = {"model": name, "weights": name[::-1] * 9, "data": "digits", "split": "test", "norm": "l2", "box": "unit"}
        image |= {"settings": "", "eps": np.nan, "index": i, "input_sha256": f"{i:064x}", "label": 1, "predicted": int(right[i])}
        image |= {"state_reason": "", "distance_l2": np.nan, "distance_linf": np.nan, "forwards": 1, "backwards": 1, "seconds": 0.1}
        image |= {"arithmetic": "", "failure_probability": 0.0, "kind": "certificate", "radius": 0.0}
        rows.append(image | {"method": "prediction"})
        rows.append(image | {"method": "margin", "radius": proved * truth[i] if right[i] else 0.0})
        for eps in [np.nan] if minimal else EPSILONS:
            fell = minimal or truth[i] <= eps
            distance = truth[i] if fell else np.nan
            found = {"distance_l2": distance, "distance_linf": distance / 3, "radius": truth[i] if fell else np.inf}
            rows.append(image | {"kind": "attack", "method": "pgd", "eps": eps} | found)
    said = {"model": name, "weights": name[::-1] * 9, "data": "digits", "data_digest": "d" * 64, "norm": "l2", "box": "unit"}
    said |= {"epsilons": list(EPSILONS), "protocol": ["pgd"], "certificates": ["margin"], "samples": images, "seed": 0}
    said |= {"device": "cpu", "date": "2026-01-01", "command": f"rkhs-eval --model {name} | tee log", "complete": True}
    return Evaluation(verdicts.merge([pd.DataFrame(rows)]), About.read(said | about, "synthetic"))


def trio():
    strong, weak = synthetic("robust_vgg", scale=1.2, seed=1), synthetic("plain", clean=0.95, scale=0.2, proved=0.1, seed=2)
    return [strong, synthetic("sandwich_cnn", clean=0.8, proved=0.9, seed=3), weak]


def test_every_file_is_the_same_twice_and_from_the_parquet_alone(tmp_path):
    models = trio()[:2]
    first = report(models, tmp_path / "a")
    stored = [verdicts.read(verdicts.write(one, tmp_path / f"{one.about.model}.parquet")) for one in models]
    second = report(stored, tmp_path / "b")
    names = {kind: [path.relative_to(tmp_path / "a") for path in paths] for kind, paths in first.items()}
    assert names == {kind: [path.relative_to(tmp_path / "b") for path in paths] for kind, paths in second.items()}
    assert {kind: len(paths) for kind, paths in names.items()} == {
        "curves": 9,
        "tables": 9,
        "images": 2,
        "tradeoff": 9,
        "leaderboard": 2,
    }
    for kind in first:
        for a, b in zip(first[kind], second[kind], strict=True):
            assert a.read_bytes() == b.read_bytes() and a.stat().st_size > 100, a
    assert not list(tmp_path.rglob("*.part"))


def test_tables_hold_the_summary(tmp_path):
    models = trio()
    csv, md, tex = write_tables(models, tmp_path / "all")
    frame = pd.read_csv(csv)
    expected = pd.concat([verdicts.summary(one) for one in models], ignore_index=True)
    pd.testing.assert_frame_equal(frame[expected.columns], expected, check_dtype=False)
    row = expected.iloc[0]
    shown = f"{100 * row['robust']:.1f}% [{100 * row['robust_low']:.1f}, {100 * row['robust_high']:.1f}]"
    assert shown in md.read_text() and shown.replace("%", r"\%") in tex.read_text()
    assert r"robust\_vgg" in tex.read_text() and tex.read_text().count(r"\\") == 10
    assert for_latex("a_b & 50% {x} ~^\\ #$") == r"a\_b \& 50\% \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \#\$"
    assert markdown(["a"], [["x | y\nz"]]).splitlines()[2] == r"| x \| y z |"


def printed(table):
    stream = io.StringIO()
    Console(file=stream, width=120).print(table)
    return stream.getvalue()


def test_console_tells_shares_limits_counts_and_what_is_withheld():
    done = synthetic("m", images=40)
    row = verdicts.summary(done).iloc[0]
    text = printed(console(done))
    assert (
        f"{100 * row['clean']:.1f}% [{100 * row['clean_low']:.1f}, {100 * row['clean_high']:.1f}]" in text and "40 images" in text
    )
    assert re.search(rf"\b{int(row['count_certified'] + row['count_survived'])}\b", text)
    table = done.table
    partial = replace(done, table=table[~((table["index"] < 9) & (table["kind"] == "attack"))])
    assert "withheld" in printed(console(partial)) and "untested" in printed(console(partial))
    assert "pgd" in printed(console_attacks(done)) and "MASKED" not in printed(console_attacks(done))


def board(models, folder):
    md, csv = write_leaderboard(models, folder)
    return md.read_text(), pd.read_csv(csv, dtype={"rank": "Int64"})


def test_leaderboard_ranks_by_robust_then_certified_accuracy(tmp_path):
    text, frame = board(trio(), tmp_path)
    models = {one.about.model: one for one in trio()}
    for eps, section in frame.groupby("eps"):
        right = [verdicts.robust_images(models[name], eps).to_numpy() for name in section["model"]]
        p = verdicts.holm(
            [verdicts.mcnemar(right[0], right[1]), verdicts.mcnemar(right[0], right[2]), verdicts.mcnemar(*right[1:])]
        )
        second = 2 if p[0] <= 0.05 else 1  # a rank is shared with its best, unless that one is significantly better
        third = 3 if p[{1: 1, 2: 2}[second]] <= 0.05 else second
        assert list(section["rank"]) == [1, second, third] and section["robust"].is_monotonic_decreasing
    assert set(frame["rank"]) == {1, 2, 3}
    assert text.count("\n## digits, l2, eps") == 3 and "tee log" in text and r"\| tee" in text
    assert "does not show that two models are equally robust" in text and "equal strength" not in text
    twins = [synthetic("a", proved=0.2), synthetic("b", proved=0.6)]
    text, frame = board(twins, tmp_path)
    assert list(frame.loc[frame["eps"] == 0.25, "model"]) == ["b", "a"]
    assert "b and a do not differ significantly on the 60 images they share (adjusted p = 1)" in text


def test_leaderboard_refuses_the_unsound_and_does_not_rank_the_untested(tmp_path):
    sound, broken, partial = trio()
    table = broken.table.copy()
    misclassified = np.isfinite(table["radius"]) & (table["kind"] == "attack")
    victim = table.loc[misclassified & (table["label"] == table["predicted"]), "index"].iloc[0]
    table.loc[(table["index"] == victim) & (table["method"] == "margin"), "radius"] = 9.0
    broken = replace(broken, table=table)
    table = partial.table
    partial = replace(partial, table=table[~((table["index"] == 0) & (table["kind"] == "attack"))])
    assert len(verdicts.breaches(broken))
    text, frame = board([sound, broken, partial], tmp_path)
    status = frame.drop_duplicates("model").set_index("model")["status"]
    assert status.to_dict() == {"robust_vgg": "ranked", "sandwich_cnn": "refused", "plain": "incomplete"}
    refused = frame[frame["status"] == "refused"]
    assert refused["robust"].isna().all() and refused["rank"].isna().all() and refused["reason"].str.contains("breach").all()
    assert "### Refused" in text and "### Incomplete" in text and "untested" in text


def test_a_breach_found_in_another_norm_refuses_too(tmp_path):
    one = synthetic("m", proved=0.9)
    attacks = one.table[(one.table["kind"] == "attack") & np.isfinite(one.table["radius"])]
    nearer = attacks.assign(norm="linf", distance_l2=attacks["radius"] / 2, radius=attacks["distance_linf"])
    said = one.table[one.table["method"] == "prediction"]
    other = Evaluation(verdicts.merge([pd.concat([said, nearer])]), one.about.but(norm="linf"))
    _, alone = board([one], tmp_path)
    _, both = board([one, other], tmp_path)
    assert set(alone["status"]) == {"ranked"} and set(both["status"]) == {"refused"}


def test_marks_name_the_masked_attack_and_the_unaudited(tmp_path):
    one = synthetic("m", proved=0.0)
    found = one.table[(one.table["kind"] == "attack") & (one.table["eps"] == 0.5)]
    blind = one.table.copy()
    attacks = blind["kind"] == "attack"
    blind.loc[attacks, ["distance_l2", "distance_linf"]] = np.nan
    blind.loc[attacks, "radius"] = np.inf
    text, frame = board([replace(one, table=pd.concat([blind, found.assign(method="check:pgd")]))], tmp_path)
    assert "masked: pgd" in frame.loc[frame["eps"] == 0.5, "marks"].iloc[0] and "masked: pgd" in text
    bare = synthetic("n", proved=0.9)
    _, frame = board([replace(bare, table=bare.table[bare.table["kind"] == "certificate"])], tmp_path)
    assert frame["marks"].str.contains("not audited").all() and set(frame["status"]) == {"incomplete"}


def test_the_largest_evaluation_of_the_same_weights_stands_on_the_board(tmp_path):
    _, frame = board([synthetic("m", images=20, scale=9.0), synthetic("m", images=60)], tmp_path)
    assert list(frame["images"]) == [60, 60, 60]
    _, frame = board([], tmp_path)
    assert len(frame) == 0


def test_sending_a_model_again_changes_no_entry():
    """Of equal submissions the first stands; of one's own evaluations the last."""
    first, again = (synthetic("x", submitted=date, date=date) for date in ("2026-01-01", "2026-01-02"))
    assert {best_of([Brief.of(one) for one in order]).about.date for order in ([first, again], [again, first])} == {"2026-01-01"}
    earlier, later = (synthetic("x", date=date) for date in ("2026-01-03", "2026-01-04"))
    for order in ([earlier, first, later], [later, earlier, first]):
        assert best_of([Brief.of(one) for one in order]).about.date == "2026-01-04"


@pytest.mark.parametrize("minimal", [False, True])
def test_a_curve_is_drawn_for_one_and_for_minimal_norm_attacks(minimal, tmp_path):
    done = synthetic("m", minimal=minimal)
    points = verdicts.curve(done)
    assert points["tested"].all() == minimal
    paths = draw_curve([done], tmp_path / "deep" / "curve")
    assert [path.suffix for path in paths] == [".png", ".pdf", ".svg"] and paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF") and b"CreationDate" not in paths[1].read_bytes()
    assert b"<dc:date>" not in paths[2].read_bytes()


def test_what_cannot_be_drawn_or_written_is_one_clear_line(tmp_path):
    one = synthetic("m", images=5)
    for draw in (lambda e: draw_curve(e, tmp_path / "x"), lambda e: draw_tradeoff(e, 0.5, tmp_path / "x")):
        with pytest.raises(UserError, match="at least one"):
            draw([])
        with pytest.raises(UserError, match="one data set, norm and box"):
            draw([one, replace(one, about=one.about.but(data="mnist"))])
    (tmp_path / "file").write_text("")
    for write in (report, write_leaderboard):
        with pytest.raises(UserError, match="cannot write"):
            write([one], tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        write_tables([one], tmp_path / "file" / "stem")


def test_files_are_named_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda figure, target, **settings: Path(target).touch())  # only names are looked at
    one = synthetic("a/b", images=5, epsilons=[0.5])
    no_box = replace(one, about=one.about.but(box="none"))
    again = replace(one, table=one.table.assign(forwards=2))
    other = synthetic("c", images=5, epsilons=[0.5])
    names = [path.name for path in report([one, again, no_box, other], tmp_path, leaderboard=False)["tables"]]
    assert len(set(names)) == len(names) and "a_b-digits-l2-nobox.md" in names and "all-digits-l2.md" in names
    assert not (tmp_path / "leaderboard.md").exists()


def test_what_ran_less_is_not_comparable_and_says_what_completes_it(tmp_path):
    diagnosis = {"name": "zero_gradients", "tripped": False, "value": 0.0, "threshold": 0.1, "words": "fine", "cost": 1.0}
    whole = [synthetic(name, seed=place, diagnostics=[diagnosis]) for place, name in enumerate(("a", "b"))]
    bought = synthetic("bought", images=4, clean=1.0, scale=9.0, diagnostics=[diagnosis])
    undiagnosed = synthetic("undiagnosed", scale=9.0, marks=["undiagnosed"])
    text, frame = board([*whole, bought, undiagnosed], tmp_path)
    here = frame[frame["eps"] == 0.5].set_index("model")
    assert set(here.index[here["status"] == "ranked"]) == {"a", "b"}
    assert here.loc["bought", "reason"] == "4 images, those ranked have 60"
    assert here.loc["undiagnosed", "reason"] == "no diagnosis was run, those ranked were diagnosed"
    assert text.count("### Not comparable") == 3
    assert "- bought: 4 images, those ranked have 60; `rkhs-eval --model bought` completes it" in text


def test_rows_as_csv_are_a_table_as_csv():
    rows = [{"a": 1, "b": "=1+1", "c": 0.1 + 0.2}, {"a": 1.0, "b": "two, three\n", "c": None}, {"b": "=1+1"}]
    text = csv_of(["a", "b", "c"], rows)
    assert text == "a,b,c\n1,'=1+1,0.30000000000000004\n1.0,\"two, three\",\n,'=1+1,\n"
    assert pd.read_csv(io.StringIO(text)).equals(pd.read_csv(io.StringIO(csv(pd.DataFrame(rows, columns=["a", "b", "c"])))))
