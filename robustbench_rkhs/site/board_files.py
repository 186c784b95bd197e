"""The files of a board: its page, and the same as csv and JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from robustbench_rkhs.reports.tables import csv_of
from robustbench_rkhs.site.board_rows import rows_html
from robustbench_rkhs.site.boards import COLUMNS, Board, Column
from robustbench_rkhs.site.pages import write_changed, write_page

READ = (
    ("Robust", "the share of images that are certified or withstood every attack; the true robust accuracy is at most this"),
    ("Certified", "the share of images that are proved robust; the true robust accuracy is at least this"),
    ("Open", "what lies between: neither proved nor broken"),
    ("Limits", "in brackets, Clopper-Pearson 95%"),
    (
        "Ranked",
        "models that were evaluated on the same images by the same attacks. Of several such groups, the one on most images is "
        "ranked, then the one whose attacks made most passes (in powers of two). So a model that was evaluated on more images "
        "takes the place of the others until they were, too",
    ),
    (
        "Rank",
        "models that do not differ significantly from the best of a rank share it (exact McNemar test on the images they share, "
        "Holm-corrected over all pairs of the board, 5%). That two models share a rank does not show that they are equally robust",
    ),
    (
        "Inferred",
        "a mark: that many images withstood every attack, but some of the attacks only with a larger budget than this eps, or "
        "without one",
    ),
    (
        "Stale",
        "made by older code of the attacks, certificates or evaluation, or by unknown code: the same command may find more today. "
        "rkhs-report --rejudge evaluates again what is cheap and names the rest",
    ),
    (
        "Not comparable",
        "evaluated on fewer or other images than the ranked ones, or by other attacks, or without the diagnosis or the audit that "
        "they went through. Listed apart, with what is missing and the command that completes it",
    ),
    (
        "Not seen",
        "training on the test images as well as on the training images: a submission is marked where its test accuracy is more "
        "than three standard errors above its training accuracy, which training on both hides",
    ),
)
"""How to read a board."""


def write_board(board: Board, stem: Path) -> list[Path]:
    """STEM.html, .csv and .json. Raises UserError where they cannot be written."""
    shown = columns(board)
    page = write_page(
        stem.with_name(f"{stem.name}.html"),
        "board.html",
        "../",
        title=board.title,
        board=board,
        columns=shown,
        rows=rows_html(board.rows, shown),
        read=READ,
        filters=filters(board),
        compare=compared(board),
    )
    stated: dict[str, Any] = {
        "$schema": "../assets/board.schema.json",
        "title": board.title,
        "protocol": dict(board.protocol),
        "images": board.images,
        "command": board.command,
        "eps": board.section[4],
        "ranked": board.rows,
    }
    stated |= {"not_comparable": board.apart, "not_ranked": board.aside, "pairs": board.pairs, "claimed": board.claimed}
    text = json.dumps(stated, ensure_ascii=False, allow_nan=False)  # indented, it takes ten times as long
    return [
        page,
        write_changed(stem.with_name(f"{stem.name}.csv"), _csv(board).encode()),
        write_changed(stem.with_name(f"{stem.name}.json"), f"{text}\n".encode()),
    ]


def columns(board: Board) -> list[Column]:
    """The columns: those without any value are not shown at first."""
    filled = {one.key for one in COLUMNS for row in board.rows if row[one.key] not in (None, "", [])}
    return [replace(one, shown=one.shown and (one.key in filled or not board.rows)) for one in COLUMNS]


def filters(board: Board) -> dict[str, list[str]]:
    """By column, the values to choose from, where there are at least two and not too many."""
    found = {}
    for column in COLUMNS:
        values = sorted({str(row[column.key]) for row in board.rows if row[column.key]})
        if column.filtered and 2 <= len(values) <= 40:
            found[column.key] = values
    return found


def compared(board: Board) -> str:
    """The state of the compare page with the first models of a board."""
    data, digest, norm, box, eps = board.section
    names = ",".join(dict.fromkeys(row["page"] for row in board.rows[:4] if row["page"]))
    return urlencode({"d": "/".join([data, digest[:12], norm, box]), "m": names, "eps": f"{eps!r}"})


def _csv(board: Board) -> str:
    """Every entry, one row each, with the status of those that are not ranked."""
    rows: list[dict[str, Any]] = []
    for status, members in (("ranked", board.rows), ("not comparable", board.apart), ("", board.aside)):
        for row in members:
            flat = {key: "; ".join(map(str, one)) if isinstance(one, list | tuple) else one for key, one in row.items()}
            flat.pop("doubts", None)
            rows.append({"status": row.get("status", status), "reason": ""} | flat)
    first = ["status", "rank", "model"]
    heads = [*first, *(name for name in dict.fromkeys(key for row in rows for key in row) if name not in first)]
    return csv_of(heads, rows)
