"""Rows of finished jobs in little memory: texts and constants as categories, whole numbers in 32 bits, few large tables."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.image_digests import ImageDigests

SMALL = 64
"""Most tables that are kept separately. Each costs 30 kB, plus 30 to 70 bytes per row."""
DIGEST = "input_sha256"
LARGEST = 2**30
"""Whole numbers up to this are kept in 32 bits: sums of a few of them still fit."""


class Tables(list[pd.DataFrame]):
    """A list of tables that makes its members compact, and joins those of like columns whenever there are many.

    `digests`: keeps the digests of images, once for all rows of an image.
    """

    def __init__(self, digests: ImageDigests | None = None) -> None:
        super().__init__()
        self.digests = digests

    def append(self, table: pd.DataFrame) -> None:
        if self.digests is not None and DIGEST in table:
            self.digests.note(table["index"].tolist(), table[DIGEST].tolist())
            table = table.drop(columns=DIGEST)
        if len(table):
            super().append(with_constants(compact(table)))
        if len(self) >= SMALL:
            self._join()

    def __iadd__(self, tables: Sequence[pd.DataFrame]) -> "Tables":  # type: ignore[override,misc]
        for table in tables:
            self.append(table)
        return self

    def whole(self) -> pd.DataFrame:
        """All rows, compact; without the digests of images, where these are kept apart."""
        self._join()
        return joined(list(map(without_constants, self))) if self else pd.DataFrame()

    def merged(self) -> pd.DataFrame:
        """All rows as the table of an evaluation, which takes some 200 bytes per row."""
        return verdicts.merge(self._emptied(), self._with_digests)

    def _emptied(self) -> Iterator[pd.DataFrame]:
        """All rows as one table, which is held by nobody else."""
        self._join()
        rows: list[pd.DataFrame] = []
        while self:
            rows.append(without_constants(self.pop()))
        rows[:] = [joined(rows)] if rows else []
        while rows:
            yield rows.pop()

    def _with_digests(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows if self.digests is None else rows.assign(**{DIGEST: self.digests(rows["index"].tolist())})

    def _join(self) -> None:
        """One table for each set of column types. Where they are many, so that this would come at every step, one for all."""
        kinds: dict[tuple[bool, ...], list[pd.DataFrame]] = {}
        for table in self:
            kinds.setdefault(tuple(is_category(table[name]) for name in table), []).append(table)
        self[:] = [joined(some) for some in kinds.values()]
        if len(self) > SMALL // 2:
            self[:] = [joined(list(map(without_constants, self)))]


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows: texts as sorted categories, except the digests of images; whole numbers in 32 bits where they fit."""
    columns = {}
    for name, column in table.items():
        if isinstance(column.dtype, pd.StringDtype) or column.dtype == object:
            columns[name] = column if name == DIGEST else column.astype("category")
        elif column.dtype == np.int64 and (not len(column) or column.abs().max() < LARGEST):
            columns[name] = column.astype(np.int32)
        else:
            columns[name] = column
    return pd.DataFrame(columns, index=table.index)


def with_constants(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows, with columns of one float as categories."""
    columns = {}
    for name, column in table.items():
        constant = column.dtype == np.float64 and len(column) > 0 and column.nunique(dropna=False) == 1
        columns[name] = column.astype("category") if constant else column
    return pd.DataFrame(columns, index=table.index)


def without_constants(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows, with floats as floats."""
    floats = [name for name in table if is_category(table[name]) and table[name].cat.categories.dtype.kind == "f"]
    return table.astype(dict.fromkeys(floats, np.float64))


def is_category(column: pd.Series) -> bool:
    """Whether a column holds categories."""
    return isinstance(column.dtype, pd.CategoricalDtype)


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One compact table of several; their categories are united, which `pd.concat` would turn back into texts."""
    if len(tables) == 1:
        return tables[0]
    columns = {}
    for name in tables[0]:
        parts = [table[name] for table in tables]
        if all(map(is_category, parts)):
            columns[name] = union_categoricals(parts, sort_categories=True)
        else:
            columns[name] = pd.concat(parts, ignore_index=True).array
    return pd.DataFrame(columns)
