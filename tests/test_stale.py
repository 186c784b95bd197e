"""Tables that older code made are marked with the reason, and evaluated again where that is cheap."""

import pandas as pd
import pytest
from test_cli import rkhs

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.paths import checkpoints_folder
from robustbench_rkhs.reports import write_leaderboard
from robustbench_rkhs.reports.entries import best_of
from robustbench_rkhs.runtime.sources import plain_code
from robustbench_rkhs.site.boards import boards
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.verdicts import Brief, evaluator, stale


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The reports of one evaluation."""
    folder = tmp_path_factory.mktemp("home")
    loaded = checkpoint.load(checkpoints_folder() / "digits_mlp")
    recipe = EvalRecipe(eps=("0.25",), attacks=(DDN(steps=3),), certificates=("margin",), samples=8, diagnostics=False)
    where = {"name": "digits_mlp", "folder": folder / "reports/verdicts", "command": "rkhs-eval --model digits_mlp"}
    evaluate(loaded.model, loaded.recipe.data.test(), recipe, **where)
    return folder


def older(home, **fields):
    """The table of the fixture, as older code would have made it, in place of it."""
    path = max((home / "reports/verdicts/digits_mlp").glob("*.parquet"), key=lambda one: verdicts.read(one).about.date)
    found = verdicts.read(path)
    about = found.about.but(date="2020-01-01", **{"evaluator": {**evaluator(), "attacks": "0" * 16}, **fields})
    return path, verdicts.Evaluation(found.table, about, sealed=True)


def test_comments_and_docstrings_are_no_code():
    one = '"""A."""\ndef f(x):\n    """B."""\n    return x  # why\nclass A:\n    a: int = 1\n    """What."""\n'
    other = "def f(x):\n    return x\n\n\nclass A:\n    a: int = 1\n"
    assert plain_code(one) == plain_code(other) != plain_code(other.replace("= 1", "= 2"))


def test_only_what_a_table_used_makes_it_stale(home):
    path, found = older(home)
    assert stale(verdicts.read(path)) == "" and stale(found) == "the code of attacks has changed since"
    proved = verdicts.Evaluation(found.table, found.about.but(protocol=()))
    assert stale(proved) == "" and "named their evaluator" in stale(verdicts.Evaluation(found.table, found.about.but(evaluator={})))
    images = verdicts.Evaluation(found.table, found.about.but(epsilons=(), eps_text=(), evaluator={}))
    assert stale(images) == ""
    both = {"attacks": "1", "certificates": "2", "evaluation": evaluator()["evaluation"]}
    assert stale(older(home, evaluator=both)[1]) == "the code of attacks and certificates has changed since"


def test_boards_say_it_and_published_ones_depend_on_no_code(home, tmp_path):
    _, found = older(home)
    from robustbench_rkhs.reports.entries import board

    (row,) = boards(board([found]), {}, {})[0].rows
    assert (
        row["stale"] == "the code of attacks has changed since" and "stale: the code of attacks has changed since" in row["marks"]
    )
    md, _ = write_leaderboard([found], tmp_path, today=True)
    assert "digits_mlp is stale" in md.read_text()
    md, csv = write_leaderboard([found], tmp_path)
    assert "stale" not in md.read_text() and "stale" not in pd.read_csv(csv)


def test_of_one_day_the_table_of_todays_code_stands(home):
    path, old = older(home)
    new = verdicts.read(path)
    same = verdicts.Evaluation(old.table, old.about.but(date=new.about.date, certificates=("margin", "liplt")), sealed=True)
    assert best_of([Brief.of(same), Brief.of(new)]).about.evaluator == new.about.evaluator


def test_what_is_cheap_is_evaluated_again_and_the_rest_is_named(home, monkeypatch):
    path, old = older(home)
    path.unlink()
    old_path = path.with_name("l2-older.parquet")
    verdicts.write(verdicts.Evaluation(old.table, old.about), old_path)
    verdicts.write(
        verdicts.Evaluation(old.table.assign(seconds=9999.0), old.about.but(norm="l2", job="")), path.with_name("b.parquet")
    )
    path.with_name("b.parquet").rename(old_path)
    out, _ = rkhs("report", "--rejudge", folder=home)
    assert "more than 60 s" in out and "rkhs-eval --model digits_mlp" in out and "0 evaluated again" in out
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    out, _ = rkhs("report", "--rejudge", "--cheap", "1e9", "--engine", "torchrun", folder=home)
    assert "evaluated again: robust at 0.25" in out and "1 evaluated again, 0 left" in out
    assert not stale(verdicts.read(path)) and old_path.exists()
    assert verdicts.digest(verdicts.read(path).table) == verdicts.digest(old.table)  # the same claims, of the same arithmetic
    out, _ = rkhs("report", "--rejudge", folder=home)
    assert "stale: 0 tables" in out
    _, err = rkhs("report", "--rejudge", "--published", folder=home, code=2)
    assert "--rejudge evaluates again: expected no other option" in err


def test_another_model_of_that_name_is_not_evaluated_in_its_place(home):
    path, old = older(home, key="0" * 64)
    for one in path.parent.glob("*.parquet"):
        one.unlink()
    verdicts.write(verdicts.Evaluation(old.table, old.about), path)
    out, _ = rkhs("report", "--rejudge", folder=home)
    assert "at hand is another function" in out and "0 evaluated again, 1 left" in out
