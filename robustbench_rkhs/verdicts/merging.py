"""Merging the rows of many jobs into one table, in little more memory than the table itself takes."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.memory import FREED
from robustbench_rkhs.verdicts.schema import COLUMNS, KEY, ROWS, check_columns, check_keys, telling, validate

LONG = 4096
"""Rows of one text that share their memory."""
Completed = Callable[[pd.DataFrame], pd.DataFrame]
"""Rows with the columns that were left out of them."""


def merge(tables: Iterable[pd.DataFrame], completed: Completed = lambda rows: rows) -> pd.DataFrame:
    """One table in canonical order; rows that differ at most in their seconds are one.

    Texts may be sorted categories, and columns may be left out that follow from the others: `completed` adds them to some rows.
    Raises UserError where two rows of one key disagree, or one index names two images.
    """
    filled = [table for table in tables if len(table)]
    if not filled:
        return validate(pd.DataFrame({column: [] for column in COLUMNS}))
    whole = filled[0] if len(filled) == 1 else pd.concat(filled, ignore_index=True)
    del filled
    FREED.give_back()
    check_columns(completed(whole.iloc[:1]))
    if whole.duplicated(KEY).any():
        whole = whole.drop_duplicates([column for column in whole.columns if column != "seconds"])
    check_keys(whole)
    _one_image_each(whole)
    whole = whole.reset_index(drop=True)
    order = whole[telling(whole)].sort_values(telling(whole), kind="stable").index.to_numpy()  # no two rows share a key
    columns = {}
    for name in COLUMNS:
        if name in whole:
            columns[name] = _spelt(whole[name].take(order).reset_index(drop=True))
        else:
            parts = [completed(pd.DataFrame({"index": some}))[name] for some in _portions(columns["index"])]
            columns[name] = pd.concat(parts, ignore_index=True)
    del whole
    FREED.give_back()
    return validate(pd.DataFrame(columns, copy=False))


def _portions(column: pd.Series) -> list[pd.Series]:
    return [column.iloc[start : start + ROWS] for start in range(0, len(column), ROWS)]


def _spelt(column: pd.Series) -> pd.Series:
    """Categories as texts; where few texts follow each other in long runs, the rows of a run share their memory."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return column.astype(np.int64) if column.dtype == np.int32 else column
    codes, texts = column.cat.codes.to_numpy(), column.cat.categories
    ends = np.append(np.flatnonzero(np.diff(codes)) + 1, len(codes))
    if len(ends) * 64 > len(codes) or (codes < 0).any():
        return column.astype(texts.dtype)
    runs = {code: pa.array([texts[code]] * LONG, type=pa.large_string()) for code in np.unique(codes).tolist()}
    chunks, start = [], 0
    for end in ends.tolist():
        for begin in range(start, end, LONG):
            chunks.append(runs[codes[start]].slice(0, min(LONG, end - begin)))
        start = end
    shared: Any = pd.arrays.ArrowStringArray
    return pd.Series(shared(pa.chunked_array(chunks), dtype=pd.StringDtype("pyarrow", na_value=np.nan)))


def _one_image_each(table: pd.DataFrame) -> None:
    image = ["data", "split", "index"]
    named = table[[*image, *(name for name in ("label", "input_sha256") if name in table)]].drop_duplicates()
    several = named[named.duplicated(image)]
    if len(several):
        raise UserError(f"image {several['index'].iloc[0]} stands for two different images or labels: expected one data set")
