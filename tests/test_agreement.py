"""Tables that were sealed by somebody else: what reports and file names are made of is checked, and reports go on past the rest."""

import numpy as np
import pytest
from test_report import synthetic

from robustbench_rkhs import UserError, verdicts
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.site.charts import begin_still, curve_chart
from robustbench_rkhs.site.model_data import down
from robustbench_rkhs.verdicts import store

GOOD = synthetic("good", images=8)
FORGED = {
    "a path": ({"model": "../../evil"}, {"model": "../../evil"}),
    "a pattern": ({"model": "**"}, {"model": "**"}),
    "no name": ({"model": ""}, {"model": ""}),
    "a long name": ({"model": "x" * 5000}, {"model": "x" * 5000}),
    "a NUL in a name": ({"model": "a\0b"}, {"model": "a\0b"}),
    "a NUL in the data": ({"data": "a\0b"}, {"data": "a\0b"}),
    "another model's rows": ({"model": "other"}, {}),
    "another network's rows": ({"weights": "0" * 64}, {}),
    "another data set's rows": ({"data": "mnist"}, {}),
    "another norm's rows": ({"norm": "linf"}, {}),
    "another box's rows": ({"box": "none"}, {}),
    "rows of two splits": ({}, {"split": ["test", "train"] * (len(GOOD.table) // 2)}),
    "no radius": ({"eps_text": ["<b>"]}, {}),
    "another radius": ({"eps_text": ["7"]}, {}),
    "too many radii": ({"epsilons": [place / 1e4 for place in range(20_000)]}, {}),
    "a radius below 0": ({"epsilons": [-1.0]}, {}),
    "too many attacks": ({"protocol": [f"a{place}" for place in range(50_000)]}, {}),
    "settings of another form": ({"settings": {"certificates": 5}}, {}),
    "a long key": ({"key": "1" * 1000}, {}),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_table_is_named_and_left_out(kind, tmp_path):
    said, columns = FORGED[kind]
    verdicts.write(GOOD, tmp_path / "verdicts" / "good" / "l2-good.parquet")
    forged = tmp_path / "verdicts" / "evil" / "l2-evil.parquet"
    store._write(GOOD.table.assign(**columns), GOOD.about.plain() | said, forged)
    with pytest.raises(UserError, match="l2-evil"):
        verdicts.read(forged)
    unread = []
    assert [one.about.model for one in Places(tmp_path).cache().read_all(tmp_path / "verdicts", unread.append)] == ["good"]
    assert len(unread) == 1 and "\n" not in unread[0] and len(unread[0]) < 500


def test_an_infinite_certified_radius_is_drawn_as_a_large_one():
    assert down(np.array([np.inf, 0.5])) == [1e12, 0.5]


def test_a_chart_is_drawn_whatever_its_title(tmp_path):
    """vl-convert ends the whole process at a character that XML has not."""
    row = {"eps": 0.0, "certified": 0.5, "broken": 0.5, "model": "m"}
    written = begin_still(curve_chart("l2"), {"steps": [row], "points": []}, "a\0b \x1b \uffff", tmp_path / "chart")()
    assert [path.suffix for path in written] == [".svg", ".png"] and all(path.stat().st_size > 100 for path in written)


def test_a_radius_that_nobody_typed_is_told_in_four_digits_and_read_again(tmp_path):
    eps = 0.0483712345
    about = GOOD.about.but(epsilons=(eps,), eps_text=("0.04837",))
    path = verdicts.write(type(GOOD)(GOOD.table, about), tmp_path / "table.parquet")
    assert verdicts.read(path).about.words(eps) == "0.04837"
