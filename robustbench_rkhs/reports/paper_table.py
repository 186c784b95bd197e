"""A table for a paper: one column per eps, the best in bold, what does not differ from it underlined, doubts with a dagger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.table_models import TableModel
from robustbench_rkhs.reports.table_request import Column
from robustbench_rkhs.reports.tables import records
from robustbench_rkhs.verdicts import holm, mcnemar, states, summary
from robustbench_rkhs.verdicts.axes import domain

ALPHA = 0.05
Rank = Literal["", "best", "tie"]


@dataclass(frozen=True)
class Cell:
    """One share, and how it compares in its column."""

    share: float
    """NaN where it is not known."""
    low: float
    high: float
    images: int
    upper: float = float("nan")
    """For a share that is withheld: it lies between `low` and this one."""
    rank: Rank = ""
    p: float = float("nan")
    """Adjusted p-value of the paired test against the best."""
    doubtful: bool = False

    @property
    def text(self) -> str:
        """In percent; a range where only that is known."""
        if self.share == self.share:
            return f"{100 * self.share:.1f}"
        return f"{100 * self.low:.1f} to {100 * self.upper:.1f}" if self.upper == self.upper else "-"


@dataclass(frozen=True)
class PaperTable:
    """The table, as values: writers only format it."""

    columns: list[Column]
    rows: list[tuple[TableModel, list[Cell]]]
    caption: str
    notes: list[str]
    """A sentence for each dagger."""
    command: str


def paper_table(models: Sequence[TableModel], columns: Sequence[Column], command: str = "") -> PaperTable:
    """The shares of every model in every column, compared by the exact McNemar test on the images they share.

    The best of a column is the largest share that is not doubtful; models whose difference from it is not significant (5%, Holm
    over the column) tie with it. Doubts about attacks leave certified and clean accuracy as they are. Raises UserError for a
    column at whose eps none of the models was attacked.
    """
    for column in columns:
        _check_attacked(models, column)
    right = [[_right(one, column) for column in columns] for one in models]
    cells = [[_cell(one, column) for column in columns] for one in models]
    for place in range(len(columns)):
        ranked = _ranked([row[place] for row in cells], [row[place] for row in right])
        for row, cell in zip(cells, ranked, strict=True):
            row[place] = cell
    said: dict[str, list[str]] = {}
    for one in models:
        for line in one.doubts:
            said.setdefault(line, []).append(one.name)
    for one, row in zip(models, cells, strict=True):
        for column, cell in zip(columns, row, strict=True):
            if cell.share != cell.share and not _unsound(one):
                said.setdefault(f"{column.name} is {_why(one, column, cell)}", []).append(one.name)
    notes = [f"{', '.join(dict.fromkeys(who))}: {line}" for line, who in said.items()]
    return PaperTable(list(columns), list(zip(models, cells, strict=True)), _caption(models, columns, cells), notes, command)


def _check_attacked(models: Sequence[TableModel], column: Column) -> None:
    """Raises UserError where no model has a robust accuracy at this eps: the column would be empty."""
    had = {eps: one.evaluation.about.words(eps) for one in models for eps in one.evaluation.about.epsilons}
    if column.quantity == "robust" and column.eps not in had:
        names, were = ", ".join(one.name for one in models), "was" if len(models) == 1 else "were"
        known = ", ".join(had[eps] for eps in sorted(had))
        raise UserError(f"--table: {column.name} would be empty: {names} {were} evaluated at eps {known}; ask for one of these")


def _right(one: TableModel, column: Column) -> pd.Series:
    """Which images count as successes, by image index."""
    state = states(one.evaluation, column.eps)["state"]
    if column.quantity == "clean":
        return state != "wrong"
    return state.isin(["certified"] if column.quantity == "certified" else ["certified", "survived"])


def _cell(one: TableModel, column: Column) -> Cell:
    (row,) = records(summary(one.evaluation, [column.eps]))
    images, part = int(row["images"]), column.quantity
    doubtful = bool(one.doubts) and (part == "robust" or _unsound(one))
    nan = float("nan")
    if _unsound(one):
        return Cell(nan, nan, nan, images, doubtful=True)
    if part == "robust" and column.eps not in one.evaluation.about.epsilons:
        return Cell(nan, nan, nan, images, doubtful=True)
    if row[part] != row[part]:
        return Cell(nan, row["certified"], nan, images, upper=row["not_broken"], doubtful=True)
    return Cell(row[part], row[f"{part}_low"], row[f"{part}_high"], images, doubtful=doubtful)


def _ranked(cells: Sequence[Cell], right: Sequence[pd.Series]) -> list[Cell]:
    """The cells of a column with their ranks."""
    sure = [place for place, cell in enumerate(cells) if cell.share == cell.share and not cell.doubtful]
    if len(sure) < 2:
        return list(cells)
    best = max(sure, key=lambda place: cells[place].share)
    others = [place for place in sure if place != best]
    tests = []
    for place in others:
        shared = right[best].index.intersection(right[place].index)
        tests.append(mcnemar(right[best].loc[shared].to_numpy(), right[place].loc[shared].to_numpy()) if len(shared) else np.nan)
    adjusted = dict(zip(others, holm([1.0 if p != p else p for p in tests]), strict=True))
    unknown = {place for place, p in zip(others, tests, strict=True) if p != p}
    found = list(cells)
    for place in sure:
        rank: Rank = "best" if cells[place].share == cells[best].share else "tie" if adjusted[place] > ALPHA else ""
        if place in unknown:
            rank = ""  # no image in common: nothing is compared
        p = float(adjusted.get(place, np.nan))
        found[place] = Cell(cells[place].share, cells[place].low, cells[place].high, cells[place].images, rank=rank, p=p)
    return found


def _unsound(one: TableModel) -> bool:
    return any(line.startswith("unsound") for line in one.doubts)


def _why(one: TableModel, column: Column, cell: Cell) -> str:
    """Why a share is missing."""
    about = one.evaluation.about
    if cell.upper == cell.upper:
        return "withheld, as images are untested; it lies in the range given"
    asked = ", ".join(about.words(eps) for eps in about.epsilons)
    return f"not known: evaluated at eps {asked}"


def _caption(models: Sequence[TableModel], columns: Sequence[Column], cells: Sequence[Sequence[Cell]]) -> str:
    """Domain, images, protocol, the meaning of columns and of the print, and the widest limits."""
    counts = sorted({cell.images for row in cells for cell in row})
    images = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    about = models[0].evaluation.about
    asked = {column.quantity for column in columns}
    parts = [f"Accuracy in percent on {images} test images of {domain(about)}."]
    if "robust" in asked:
        ran = list(dict.fromkeys(" + ".join(one.evaluation.about.protocol) for one in models))
        parts.append(f"robust: correctly classified and not broken within eps by {'; '.join(ran)} (an upper bound).")
    if "certified" in asked:
        by = list(dict.fromkeys(name for one in models for name in _provers(one)))
        parts.append(f"certified: proved constant on the closed ball of radius eps ({', '.join(by) or 'no certificate'}).")
    if any(cell.rank for row in cells for cell in row):
        parts.append(
            "Bold: best of its column; underlined: no significant difference from it (exact McNemar test on the same images,"
        )
        parts.append("Holm-corrected, 5%).")
    ends = [max(cell.high - cell.share, cell.share - cell.low) for row in cells for cell in row if cell.share == cell.share]
    if ends:
        parts.append(f"Clopper-Pearson 95% limits: at most {100 * max(ends):.1f} points either way.")
    return " ".join(parts)


def _provers(one: TableModel) -> list[str]:
    """The certificates whose radii count."""
    table = one.evaluation.table
    won = table[(table["kind"] == "certificate") & (table["radius"] > 0) & (table["method"] != "prediction")]
    order = list(one.evaluation.about.certificates)
    return sorted(set(won["method"]), key=lambda name: (order.index(name) if name in order else len(order), name))
