"""The text that digests of tables are of: byte for byte what pandas writes."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import trio

from robustbench_rkhs.verdicts import table_text
from robustbench_rkhs.verdicts.briefs import _of_runs, _runs
from robustbench_rkhs.verdicts.schema import COLUMNS
from robustbench_rkhs.verdicts.table_text import text_blocks

TEXTS = st.sampled_from(["", "a", "a,b", 'say "a"', "two\nlines", "a\rb", " blank ", "'", "#", "é,ü", "nan", "1.0", "\\", "-"])
NUMBERS = st.one_of(st.floats(width=64), st.sampled_from([0.0, -0.0, 0.1, 1e16, 1e-7, 5e-324, np.inf, np.nan, 1 / 3]))
ROWS = st.lists(st.tuples(TEXTS, NUMBERS, st.integers(-(2**62), 2**62), st.none() | TEXTS), min_size=0, max_size=12)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 5))
def test_the_text_is_that_of_pandas(rows, block):
    frame = pd.DataFrame(rows, columns=["text", "num,ber", "count", "perhaps"])
    frame = frame.astype({"text": "str", "num,ber": "float64", "count": "int64", "perhaps": "object"})
    before, table_text.ROWS = table_text.ROWS, block
    try:
        assert "".join(text_blocks(frame)) == frame.to_csv(index=False, lineterminator="\n")
    finally:
        table_text.ROWS = before


def test_a_table_has_the_text_of_pandas():
    for one in trio():
        table = one.table[COLUMNS]
        for some in (table, table.iloc[:1], table.iloc[:0]):
            assert "".join(text_blocks(some)) == some.to_csv(index=False, lineterminator="\n")


def test_a_column_that_was_put_together_has_the_text_of_pandas():
    one = trio()[0].table[COLUMNS]
    whole = pd.concat([one, one.iloc[:3], one], ignore_index=True)
    assert "".join(text_blocks(whole)) == whole.to_csv(index=False, lineterminator="\n")


def test_numbers_of_every_size_have_the_text_of_python():
    chance = np.random.default_rng(0)
    bits = chance.integers(0, 2**64, 50_000, dtype=np.uint64).view(np.float64)
    near = 10.0 ** np.arange(-12, 20)
    parts = [bits, chance.lognormal(0, 2, 50_000), np.arange(1000.0), near, np.nextafter(near, 0), np.nextafter(near, np.inf)]
    values = np.concatenate([*parts, chance.random(5000).astype(np.float32), [0.0, -0.0, np.inf, -np.inf, np.nan]])
    frame = pd.DataFrame({"signed": np.concatenate([values, -values])})
    expected = ["signed", *("" if value != value else repr(value) for value in frame["signed"].tolist())]
    assert "".join(text_blocks(frame)).splitlines() == expected


def test_columns_of_other_types_have_the_text_of_their_values():
    values = np.array([0.0, -0.0, 1.5, np.nan, 0.1])
    frame = pd.DataFrame({"short": values.astype(np.float32), "swapped": np.arange(5, dtype=">i4"), "flag": values > 0})
    frame["nullable"] = pd.array([1, 2, None, 4, 5], dtype="Int64")
    found = [line.split(",") for line in "".join(text_blocks(frame)).splitlines()[1:]]
    assert [row[0] for row in found] == ["0.0", "-0.0", "1.5", "", repr(float(np.float32(0.1)))]
    assert [row[1:] for row in found] == [
        [str(place), str(values[place] > 0), "" if place == 2 else str(place + 1)] for place in range(5)
    ]


def test_long_texts_are_written_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(table_text, "LARGEST", 5000)
    frame = pd.DataFrame({"same": ["x" * 1000] * 9, "other": [f"{place}" * 300 for place in range(9)], "number": range(9)})
    blocks = list(text_blocks(frame))
    assert "".join(blocks) == frame.to_csv(index=False, lineterminator="\n")
    assert len(blocks) == 10 and max(map(len, blocks)) < 5000


@pytest.mark.parametrize("runs", [[[]], [[5]], "a", [[0, 5, 7]], [[0, 5], [7]]])
def test_images_that_are_no_runs_are_refused(runs):
    with pytest.raises((ValueError, TypeError)):
        _of_runs(runs)


@given(st.sets(st.integers(0, 30)))
def test_images_as_runs(images):
    index = np.array(sorted(images), dtype=np.int64)
    runs = _runs(index)
    assert (_of_runs(runs) == index).all() and _of_runs(runs).dtype == np.int64
    assert sum(count for _, count in runs) == len(index) and all(count > 0 for _, count in runs)
    assert all(a[0] + a[1] < b[0] for a, b in pairwise(runs))
