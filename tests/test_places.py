"""No result overwrites a better one: what git sees, what is published, what is drawn together, what is drawn again."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import rkhs
from test_report import synthetic
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports import draw_curve, report, together
from robustbench_rkhs.reports.leaderboard import write_leaderboard
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.reports.publication import draw_published, publish, withdraw
from robustbench_rkhs.reports.update import update
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.submission.owners import claimed
from robustbench_rkhs.verdicts import Brief, BriefCache, Published, comparable
from robustbench_rkhs.verdicts.brief_cache import HELD
from robustbench_rkhs.verdicts.remembered import remembered, remembering

PICTURES = (".png", ".pdf", ".svg")


def stored(out: Path, name: str, job: str, **settings):
    """A synthetic evaluation where rkhs-eval would put it."""
    one = synthetic(name, **({"key": f"{name[0]}" * 64} | settings | {"job": job * 12}))
    path = verdicts.keep(one, Published(out / "verdicts").begin() / name / f"l2-{job * 12}.parquet")
    return replace(one, path=path)


def cut(one):
    """The same evaluation without the attacks on half of its images."""
    table = one.table[(one.table["kind"] == "certificate") | (one.table["index"] % 2 == 0)]
    return replace(one, table=table, about=one.about.but(complete=False, incomplete_because="budget"))


@pytest.fixture
def quick(monkeypatch):
    """Figures are named, not drawn: which ones are is what these tests look at."""
    drawn = []

    def nothing(evaluations, *where):
        stem = where[-1]
        drawn.append((Path(stem).name, [one.about.model for one in evaluations]))
        for kind in PICTURES:
            path = Path(f"{stem}{kind}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{[one.table['radius'].sum() for one in evaluations]}")
        return [Path(f"{stem}{kind}") for kind in PICTURES]

    monkeypatch.setattr("robustbench_rkhs.reports.own_files.draw_curve", nothing)
    monkeypatch.setattr(together, "draw_curve", nothing)
    monkeypatch.setattr(together, "draw_tradeoff", nothing)
    return drawn


def git(folder, *words):
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def repository(tmp_path):
    """A repository of somebody else, whose own .gitignore knows nothing of us."""
    git(tmp_path, "init", "-q")
    return tmp_path


def seen(folder):
    """The files that git would add."""
    return {line[3:] for line in git(folder, "status", "--porcelain", "-uall")}


def under(folder):
    """Every file under a folder, with its content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# what a repeated evaluation leaves behind


def test_a_complete_table_stays_to_the_byte_when_it_is_repeated_or_cut_short(tmp_path):
    whole, path = synthetic("m"), tmp_path / "l2.parquet"
    assert verdicts.keep(cut(whole), path) == path and not verdicts.read(path).about.complete
    assert verdicts.keep(whole, path) == path and verdicts.read(path).about.complete
    before = path.read_bytes()
    again = replace(whole, table=whole.table.assign(seconds=9.0), about=whole.about.but(date="2027-01-01"))
    assert verdicts.keep(again, path) == path and verdicts.keep(cut(whole), path) == path and path.read_bytes() == before
    other = replace(whole, table=whole.table.assign(forwards=2))  # what another device may give
    beside = verdicts.keep(other, path)
    assert beside != path and path.read_bytes() == before and verdicts.keep(other, beside) == beside
    assert verdicts.digest(verdicts.read(beside).table) == verdicts.digest(other.table)
    path.write_bytes(before[:-20])
    assert verdicts.keep(whole, path) == path and verdicts.read(path).about.complete


# what git sees


def test_git_sees_nothing_of_a_trial_until_it_is_published_and_nothing_after_it_is_withdrawn(repository, quick):
    out = repository / "reports"
    stored(out, "mine", "a")
    update(out)
    assert (out / "local/leaderboard.md").is_file() and seen(repository) == {"reports/verdicts/.gitignore"}
    assert publish(out, ["mine"]) == [f"published: {out}/verdicts/mine/l2-{'a' * 12}.parquet (60 images)"]
    draw_published(out)
    shown = seen(repository)
    assert {name for name in shown if "parquet" in name} == {f"reports/verdicts/mine/l2-{'a' * 12}.parquet"}
    assert {"reports/leaderboard.md", "reports/drawn.json", "reports/curves/mine-digits-l2.png"} <= shown
    assert not any("local" in name or "briefs" in name for name in shown)
    git(repository, "add", "-A")
    git(repository, "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "published")
    stored(out, "mine", "b", images=8)
    stored(out, "odd [name] x", "c", images=8)
    update(out)
    draw_published(out)
    assert not seen(repository)
    assert "withdrawn" in withdraw(out, ["mine"])[0]
    draw_published(out)
    gone = {line[3:] for line in git(repository, "status", "--porcelain", "-uall") if line.startswith(" D")}
    assert "reports/curves/mine-digits-l2.png" in gone and (out / f"verdicts/mine/l2-{'a' * 12}.parquet").is_file()
    with pytest.raises(UserError, match="'mine' has no published table"):
        withdraw(out, ["mine"])


def test_git_sees_whom_a_name_belongs_to_once_a_table_of_it_is_published(repository):
    out = repository / "reports"
    for name in ("m", "other"):
        with claimed(out, name, "a" * 64, new=True):
            verdicts.keep(synthetic(name), out / "verdicts" / name / "l2.parquet")
    assert not {path for path in seen(repository) if "owners/" in path and not path.endswith(".gitignore")}
    assert f"published: {out / 'owners/m'}" in publish(out, ["m"])
    assert "reports/owners/m" in seen(repository) and "reports/owners/other" not in seen(repository)


def test_a_name_with_signs_of_git_patterns_is_published_alone(repository):
    out = repository / "reports"
    odd, other = stored(out, "a [b] c@1", "a"), stored(out, "a b c@1", "b")
    publish(out, ["a [b] c@1"])
    assert Published(out / "verdicts").paths() == [odd.path] and other.path.is_file()
    assert {line.strip('"') for line in seen(repository)} == {"reports/verdicts/.gitignore", str(odd.path.relative_to(repository))}


# what is published


def test_the_strongest_table_is_published_and_a_weaker_one_is_refused_with_what_it_lacks(tmp_path):
    out = tmp_path
    large = stored(out, "m", "a", images=60)
    small = stored(out, "m", "b", images=8, date="2027-01-01")
    half = stored(out, "m", "c", epsilons=[0.25], images=60)
    publish(out, ["m"])
    assert Published(out / "verdicts").paths() == [large.path]
    assert publish(out, ["m"]) == [f"{large.path} is published already"]
    for weaker, lacks in ((small, "8 images of 60"), (half, "without eps 0.5, 1")):
        with pytest.raises(UserError, match=rf"weaker than the published .*: {lacks}"):
            publish(out, [f"m/{weaker.path.stem}"])
    assert Published(out / "verdicts").paths() == [large.path]
    larger = stored(out, "m", "d", images=80)
    lines = publish(out, ["m"])
    assert Published(out / "verdicts").paths() == [larger.path] and "withdrawn" in lines[1] and "git rm --cached" in lines[1]
    withdraw(out, ["m"])
    publish(out, [f"m/{small.path.stem}"])  # once nothing stronger is published
    assert Published(out / "verdicts").paths() == [small.path]


def test_what_is_incomplete_unsound_or_unknown_is_not_published(tmp_path):
    one = cut(synthetic("m"))
    verdicts.write(one, tmp_path / "verdicts/m/l2.parquet")
    with pytest.raises(UserError, match="'m' has no table that can be published: l2: the evaluation is incomplete"):
        publish(tmp_path, ["m"])
    for name in ("n", "", "..", "m/other"):
        with pytest.raises(UserError, match=r"no table of .*; "):
            publish(tmp_path, [name])
    verdicts.write(synthetic("m"), tmp_path / "verdicts/m/l2.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot read verdicts"):
        publish(tmp_path, ["m"])


def test_other_reports_are_copied_but_never_over_one_about_more_images(tmp_path):
    places = Places(tmp_path)
    for samples in (200, 10):
        stem = places.stem("norms", "m", {"samples": samples})
        stem.parent.mkdir(exist_ok=True)
        Path(f"{stem}.csv").write_text(f"row,samples\na,{samples}\n")
        Path(f"{stem}.md").write_text(f"{samples}")
    small, large = (f"norms/{places.stem('norms', 'm', {'samples': samples}).name}" for samples in (10, 200))
    assert "(10 images)" in publish(tmp_path, [small])[0] and (tmp_path / "norms/m.md").read_text() == "10"
    assert "in place of that about 10" in publish(tmp_path, [large])[0] and (tmp_path / "norms/m.md").read_text() == "200"
    with pytest.raises(UserError, match=r"is about 10 images, the published .* about 200"):
        publish(tmp_path, [small])
    assert (tmp_path / "norms/m.md").read_text() == "200"
    with pytest.raises(UserError, match="no report 'n' in"):
        publish(tmp_path, ["norms/n"])


def test_the_command_publishes_draws_again_and_withdraws(tmp_path, quick):
    one = stored(tmp_path / "reports", "m", "a", images=5)
    out, _ = rkhs("report", "--publish", "m", folder=tmp_path)
    assert "published: reports/verdicts/m" in out and (tmp_path / "reports/tables/m-digits-l2.md").is_file()
    page = (tmp_path / "reports/leaderboard.md").read_text()
    stored(tmp_path / "reports", "n", "b", images=5)
    rkhs("report", "--published", folder=tmp_path)
    assert (tmp_path / "reports/leaderboard.md").read_text() == page and "m" in page
    out, _ = rkhs("report", "--withdraw", "m", folder=tmp_path)
    assert "withdrawn" in out and one.path.is_file() and not (tmp_path / "reports/tables/m-digits-l2.md").exists()
    _, err = rkhs("report", "--published", folder=tmp_path, code=2)
    assert "nothing is published in reports" in err
    _, err = rkhs("report", "--publish", "nn", folder=tmp_path, code=2)
    assert "no table of 'nn'" in err
    _, err = rkhs("report", "--published", "--model", "m", folder=tmp_path, code=2)
    assert "leave out --model" in err


def test_reports_of_what_is_published_stay_where_a_published_table_is_missing_or_damaged(tmp_path, quick):
    one = stored(tmp_path, "m", "a", images=5)
    publish(tmp_path, ["m"])
    draw_published(tmp_path)
    whole = one.path.read_bytes()
    before = {path: text for path, text in under(tmp_path).items() if "local" not in path.parts and path != one.path}
    for damage, fault in ((lambda: one.path.write_bytes(whole[:-9]), "cannot be read"), (one.path.unlink, "is missing")):
        damage()
        with pytest.raises(UserError, match=fault):
            draw_published(tmp_path)
        assert {path: text for path, text in under(tmp_path).items() if "local" not in path.parts and path != one.path} == before
    withdraw(tmp_path, ["m"])
    draw_published(tmp_path)
    assert not (tmp_path / "tables/m-digits-l2.md").exists()


# what is drawn together


def chosen(*evaluations, **settings):
    found = comparable([Brief.of(one) for one in evaluations], **settings)
    return [one.about.model for one in found.chosen], [str(one) for one in found.apart]


def test_only_the_same_images_eps_and_attacks_are_drawn_together_and_the_rest_is_named():
    a, b = synthetic("a"), synthetic("b", seed=1)
    small, third = synthetic("c", images=8), synthetic("d", epsilons=[0.5])
    weak = synthetic("e", settings={"attacks": [{"name": "pgd", "steps": 5}]})
    names, apart = chosen(a, b, small, third, weak, cut(synthetic("f")))
    assert names == ["a", "b"]
    assert apart == [
        "c (8 images): 8 images, those drawn have 60",
        "d (60 images): eps 0.5, those drawn have 0.25, 0.5, 1",
        "e (60 images): the same attacks with other settings than those drawn",
        "f (60 images): the evaluation is incomplete",
    ]
    assert chosen(a, b, third, eps=0.5)[0] == ["a", "b", "d"]
    shifted = replace(b, table=b.table.assign(index=b.table["index"] + 1))
    assert chosen(a, synthetic("g", seed=2), shifted)[1] == ["b (60 images): 60 other images than those drawn"]


def test_a_trial_neither_replaces_nor_joins_nor_hides_the_larger_table():
    large = [synthetic("a", key="a" * 64), synthetic("b", key="b" * 64, seed=1)]
    trial = [synthetic("a", key="a" * 64, images=8, date="2027-01-01"), synthetic("b", key="b" * 64, images=8, seed=1)]
    assert chosen(*trial, *large)[0] == ["a", "b"]
    found = comparable([Brief.of(one) for one in [*trial, *large]])
    assert all(one.images == 60 for one in found.chosen) and len(found.apart) == 2
    alone = synthetic("huge", images=100)
    assert chosen(*large, alone)[0] == ["a", "b"]  # one model is no comparison
    assert chosen(alone)[0] == [] and chosen(alone, fewest=1)[0] == ["huge"]


def test_reports_of_a_trial_leave_the_figures_of_all_models_as_they_were(tmp_path, quick):
    large = [synthetic("a"), synthetic("b", seed=1)]
    report(large, tmp_path, leaderboard=False)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("all-*")}
    report([*large, synthetic("a", images=8)], tmp_path, leaderboard=False)
    after = {path.name: path.read_bytes() for path in tmp_path.rglob("all-*")}
    page = after.pop("all-digits-l2-apart.md").decode()
    assert after == before and "a (8 images): 8 images, those drawn have 60" in page


def test_a_trade_off_needs_two_models(tmp_path, quick):
    assert not report([synthetic("a"), synthetic("b", epsilons=[2.0])], tmp_path, leaderboard=False)["tradeoff"]
    assert not list(tmp_path.rglob("tradeoff"))


def test_the_leaderboard_does_not_rank_a_trial_with_the_others(tmp_path):
    from robustbench_rkhs.reports import write_leaderboard

    models = [synthetic("a"), synthetic("b", seed=1), synthetic("trial", images=8, scale=9.0)]
    md, csv = write_leaderboard(models, tmp_path)
    frame = pd.read_csv(csv)
    assert set(frame.loc[frame["status"] == "apart", "model"]) == {"trial"}
    assert frame.loc[frame["model"] == "trial", "rank"].isna().all() and frame["rank"].notna().sum() == 6
    assert "trial: 8 images, those ranked have 60" in md.read_text()


# what is made again


def test_an_update_writes_below_local_alone_and_only_what_is_new(tmp_path, quick):
    out = tmp_path / "out"
    for number, name in enumerate("ab"):
        stored(out, name, name, seed=number)
    publish(out, ["a"])
    draw_published(out)
    published = {path: text for path, text in under(out).items() if "local" not in path.parts}
    update(out)
    quick.clear()
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in PICTURES}
    found = update(out)
    assert not quick and {path: path.stat().st_mtime_ns for path in stamps} == stamps and found.written["tradeoff"]
    assert {path: text for path, text in under(out).items() if "local" not in path.parts} == published
    stored(out, "c", "c", seed=2)
    update(out)
    assert [name for name, _ in quick] == [
        "c-digits-l2",
        "all-digits-l2",
        *(f"all-digits-l2-eps{eps}" for eps in ("0.25", "0.5", "1")),
    ]
    quick.clear()
    stored(out, "d", "d", images=8)
    found = update(out)
    assert [name for name, _ in quick] == ["d-digits-l2"] and any("d (l2-" in line for line in found.apart)


def test_reports_of_tables_that_are_all_gone_go(tmp_path, quick):
    paths = [stored(tmp_path, name, digit, key=digit * 64, seed=int(digit)) for name, digit in (("a", "1"), ("b", "2"))]
    update(tmp_path)
    local = tmp_path / "local"
    assert "| a " in (local / "leaderboard.md").read_text() and list(local.rglob("all-*"))
    for path in paths:
        (path if isinstance(path, Path) else path.path).unlink()
    assert update(tmp_path).tables == 0
    assert "No evaluations yet." in (local / "leaderboard.md").read_text() and not list(local.rglob("all-*.csv"))
    assert not update(tmp_path / "nothing").written and not (tmp_path / "nothing").exists()


def test_beyond_the_most_the_models_of_the_highest_robust_accuracy_are_drawn(tmp_path, quick, monkeypatch):
    monkeypatch.setattr("robustbench_rkhs.reports.update.MOST", 2)
    for number, (name, scale) in enumerate({"a": 0.2, "b": 2.0, "c": 1.0}.items()):
        stored(tmp_path, name, name, seed=number, scale=scale)
    found = update(tmp_path)
    assert dict(quick)["all-digits-l2"] == ["b", "c"]
    assert any(line.startswith("not in all-digits-l2: a (") and "name models" in line for line in found.apart)
    quick.clear()
    update(tmp_path, models=["a", "b", "c"])
    assert dict(quick)["all-digits-l2"] == ["a", "b", "c"]


def test_briefs_say_what_the_tables_say_and_are_kept_sealed(tmp_path):
    one = stored(tmp_path, "m", "a")
    cache = BriefCache(tmp_path / "briefs")
    fresh, kept = cache.read(one.path), cache.read(one.path)
    assert kept.about == fresh.about and kept.content == fresh.content and kept.masked == fresh.masked
    assert kept.digest == fresh.digest == verdicts.digest(one.table)
    with remembering():
        read = kept.evaluation()
        assert remembered(read, ("digest",), lambda: pytest.fail("a brief knows the digest that figures print")) == fresh.digest
    pd.testing.assert_frame_equal(pd.DataFrame(kept.rows), verdicts.summary(one))
    for eps in one.about.epsilons:
        assert kept.robust[eps].tolist() == verdicts.robust_images(one, eps).tolist()
    (record,) = (tmp_path / "briefs").glob("*.json")
    record.write_text(record.read_text().replace('"breaches": 0', '"breaches": 7'))
    assert cache.read(one.path).breaches == 0  # a damaged record is made again
    os.utime(one.path)
    moved = one.path.with_name(f"l2-{'b' * 12}.parquet")
    one.path.rename(moved)
    with pytest.raises(UserError, match="it is the table of the evaluation"):
        cache.read(moved)
    unread = []
    moved.write_bytes(moved.read_bytes()[:-9])
    assert cache.read_all(tmp_path, unread.append) == [] and "cannot read verdicts" in unread[0]


def test_tables_that_are_as_they_were_are_not_opened_and_changed_ones_are_seen(tmp_path, monkeypatch):
    """However a file is changed: in place with its time set back, for another one, or gone; and so soon that no time tells."""
    monkeypatch.setattr("robustbench_rkhs.verdicts.brief_cache.MANY", 3)
    monkeypatch.setattr("robustbench_rkhs.verdicts.brief_index.SETTLED", 0.0)
    ones = [stored(tmp_path, name, name, seed=number) for number, name in enumerate("abcd")]
    places, hashed = Places(tmp_path), []
    seal_of = seals.seal_of
    monkeypatch.setattr(seals, "seal_of", lambda path, *more: (hashed.append(path), seal_of(path, *more))[1])

    def read():
        hashed.clear()
        HELD.clear()
        unread = []
        found = [one.about.model for one in places.cache().read_all(places.verdicts, unread.append)]
        return found, list(dict.fromkeys(path for path in hashed if path.suffix == ".parquet")), unread

    assert read() == (["a", "b", "c", "d"], [one.path for one in ones], [])
    time.sleep(0.05)
    assert read() == (["a", "b", "c", "d"], [], [])
    before, content = os.stat(ones[0].path), ones[0].path.read_bytes()
    ones[0].path.write_bytes(content[:-300] + b"x" + content[-299:])
    os.utime(ones[0].path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found, opened, unread = read()
    assert found == ["b", "c", "d"] and opened == [ones[0].path] and "cannot read verdicts" in unread[0]
    ones[0].path.write_bytes(content)
    os.replace(stored(tmp_path / "other", "b", "b", seed=9).path, ones[1].path)
    ones[3].path.unlink()
    assert read() == (["a", "b", "c"], [ones[0].path, ones[1].path], [])
    (record,) = (tmp_path / "local" / "briefs").glob("index-*.json")
    record.write_text(record.read_text().replace('"breaches": 0', '"breaches": 7'))
    assert read() == (["a", "b", "c"], [one.path for one in ones[:3]], [])  # a damaged index is none
    record.unlink()

    def full(*args, **settings):
        raise Unwritable("no room")

    with monkeypatch.context() as patch:
        patch.setattr(seals, "write_record", full)
        assert read() == (["a", "b", "c"], [one.path for one in ones[:3]], [])  # what only reads needs no index
    monkeypatch.setattr("robustbench_rkhs.verdicts.brief_index.SETTLED", 3600.0)
    for _ in range(2):
        assert read() == (["a", "b", "c"], [one.path for one in ones[:3]], [])  # too fresh to be told from a later change


def test_two_functions_of_one_name_have_a_table_and_a_row_each(tmp_path):
    """As two files net.pt of two folders, evaluated without a name."""
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
        done = evaluate(
            net, (x, y), name="net", eps=(0.1,), attacks=("superdeepfool",), diagnostics=False, folder=tmp_path / "verdicts"
        )
        paths.append(done.path)
    tables = [verdicts.read(path) for path in paths]
    assert len(set(paths)) == 2 and len({one.about.key for one in tables}) == 2
    page, sheet = write_leaderboard(tables, tmp_path)
    names = [f"net ({one.about.key[:6]})" for one in tables]
    assert all(f"| {name} |" in page.read_text() for name in names) and f"{names[0]} and {names[1]}" in page.read_text().replace(
        f"{names[1]} and {names[0]}", f"{names[0]} and {names[1]}"
    )
    assert len(pd.read_csv(sheet)) == 2
    (alone, _) = write_leaderboard(tables[:1], tmp_path / "alone")
    assert "| net |" in alone.read_text()


def test_the_pooled_test_of_all_pairs_is_the_test_of_each_pair():
    random = np.random.default_rng(0)
    right, answered = random.random((5, 40)) < 0.7, random.random((5, 40)) < 0.9
    right[1], answered[1] = right[0], answered[0]
    tests, shared = verdicts.mcnemar_all(right, answered)
    for a in range(5):
        for b in range(5):
            both = answered[a] & answered[b]
            assert shared[a, b] == both.sum()
            assert tests[a, b] == pytest.approx(verdicts.mcnemar(right[a, both], right[b, both]), rel=1e-9)


def test_a_figure_that_was_removed_is_drawn_again(tmp_path):
    one = synthetic("m", images=5)
    paths = report(one, tmp_path, leaderboard=False)["curves"]
    first = paths[0].read_bytes()
    paths[0].unlink()
    report(one, tmp_path, leaderboard=False)
    assert paths[0].read_bytes() == first == draw_curve([one], tmp_path / "x")[0].read_bytes()
