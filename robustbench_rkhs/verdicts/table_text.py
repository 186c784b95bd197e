"""A table as comma-separated text, byte for byte as pandas writes it, in half the time: digests of tables are of this text."""

import csv
from collections.abc import Iterator
from io import StringIO
from itertools import repeat

import numpy as np
import pandas as pd

ROWS = 5000
"""Rows per block of text: as text, a table is larger."""


def text_blocks(table: pd.DataFrame) -> Iterator[str]:
    """The text of the table, its head first, in blocks of rows; columns hold numbers or texts.

    Cost: 0.1 s for 34,000 rows of 22 columns, most of which are the same in all rows; pandas takes 0.2 s.
    """
    yield ",".join(map(_quoted, table.columns)) + "\n"
    same = {name: _word(table[name].iloc[0]) for name in table if len(table) and _constant(table[name])}
    for start in range(0, len(table), ROWS):
        rows = table.iloc[start : start + ROWS]
        columns = [repeat(same[name], len(rows)) if name in same else _words(rows[name]) for name in rows]
        yield "\n".join(map(",".join, zip(*columns, strict=True))) + "\n"


def _constant(column: pd.Series) -> bool:
    """Whether all rows have the same text."""
    first = column.iloc[0]
    if first is None or first != first:
        return bool(column.isna().all())
    if column.dtype.kind == "f" and first == 0:  # 0 and -0 are equal, but for their text
        return bool(((column == 0) & (np.signbit(column) == np.signbit(first))).all())
    return (isinstance(first, str) or column.dtype.kind in "fiu") and bool((column == first).all())


def _words(column: pd.Series) -> list[str]:
    values = column.tolist()
    if column.dtype.kind in "iu":
        return list(map(str, values))
    if column.dtype.kind == "f":
        return ["" if value != value else repr(value) for value in values]
    if not column.hasnans and all(values) and "".join(values).isalnum():
        return values  # none needs quotation marks
    known = {value: _word(value) for value in set(values)}
    return [known[value] for value in values]


def _word(value: object) -> str:
    """A value as pandas writes it: nothing where it is missing."""
    if value is None or value != value:
        return ""
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """A text, in quotation marks where it needs them."""
    if text.isalnum():
        return text
    written = StringIO()
    csv.writer(written, lineterminator="\n").writerow([text, ""])
    return written.getvalue()[:-2]
