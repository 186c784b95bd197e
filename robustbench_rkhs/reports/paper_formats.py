r"""A table for a paper as LaTeX (booktabs), Markdown and csv.

LaTeX needs `\usepackage{booktabs}` alone. The caption and a note for each dagger are printed with the table.
"""

from itertools import groupby
from pathlib import Path
from typing import Any
from unicodedata import combining, normalize

import pandas as pd

from robustbench_rkhs.reports.paper_table import Cell, PaperTable
from robustbench_rkhs.reports.table_models import TableModel
from robustbench_rkhs.reports.tables import csv, write_bytes
from robustbench_rkhs.runtime.sinks import for_latex, for_line, for_markdown, for_markdown_code

DAGGER, EPS = "†", r"$\varepsilon$"


def write_paper_table(table: PaperTable, stem: str | Path) -> list[Path]:
    """STEM.tex, .md and .csv. Raises UserError where they cannot be written."""
    texts = {"tex": as_latex(table), "md": as_markdown(table), "csv": as_csv(table)}
    return [write_bytes(Path(f"{stem}.{kind}"), text) for kind, text in texts.items()]


def as_latex(table: PaperTable) -> str:
    r"""A `table` environment: two lines of heads, of which the first spans the columns of one quantity; notes under it."""
    groups = [(name, len(list(some))) for name, some in groupby(table.columns, lambda column: column.quantity)]
    first, rules, at = [""], [], 2
    for name, count in groups:
        first.append(rf"\multicolumn{{{count}}}{{c}}{{{name}{'' if name == 'clean' else ' at ' + EPS}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + count - 1}}}")
        at += count
    second = ["model", *(_tex(column.text) for column in table.columns)]
    lines = [" & ".join([_tex(one.name) + _dagger(one), *(_latex_cell(cell) for cell in cells)]) for one, cells in table.rows]
    body = [r"\toprule", " & ".join(first) + r" \\", " ".join(rules), " & ".join(second) + r" \\", r"\midrule"]
    body += [*(rf"{line} \\" for line in lines), r"\bottomrule"]
    tabular = [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", *body, r"\end{tabular}"]
    notes = [rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize $^\dagger$ {_tex(note)}}}" for note in table.notes]
    head = [f"% {for_line(table.command)}"] if table.command else []
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.caption)}}}", r"\smallskip"]
    return "\n".join([*head, *begin, *tabular, *notes, r"\end{table}", ""])


def as_markdown(table: PaperTable) -> str:
    """The caption, the table and its notes."""
    lines = [["model", *(column.name for column in table.columns)]]
    lines += [[for_markdown(one.name) + (DAGGER if one.doubts else ""), *map(_markdown_cell, cells)] for one, cells in table.rows]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    aligned = "| --- |" + " ---: |" * len(table.columns)
    notes = [f"{DAGGER} {for_markdown(note)}" for note in table.notes]
    made = [f"Made by {for_markdown_code(table.command)}."] if table.command else []
    body = "\n".join([rows[0], aligned, *rows[1:]])
    return "\n\n".join([for_markdown(table.caption), body, *notes, *made]) + "\n"


def as_csv(table: PaperTable) -> str:
    """One row per model and column, with limits, counts, rank, p-value and notes."""
    rows: list[dict[str, Any]] = []
    for one, cells in table.rows:
        about = one.evaluation.about
        for column, cell in zip(table.columns, cells, strict=True):
            shown: dict[str, Any] = {
                "name": one.name,
                "model": about.model,
                "quantity": column.quantity,
                "eps": column.eps,
                "eps_text": column.text,
            }
            limits = {"share": cell.share, "low": cell.low, "high": cell.high if cell.share == cell.share else cell.upper}
            compared = {"images": cell.images, "rank": cell.rank, "p": cell.p, "doubtful": cell.doubtful}
            origin = {"protocol": " ".join(about.protocol), "date": about.date, "notes": "; ".join(one.doubts)}
            rows.append(shown | limits | compared | origin)
    return csv(pd.DataFrame(rows))


def _latex_cell(cell: Cell) -> str:
    text = _tex(cell.text) + (r"$^\dagger$" if cell.doubtful else "")
    return {"best": rf"\textbf{{{text}}}", "tie": rf"\underline{{{text}}}", "": text}[cell.rank]


def _markdown_cell(cell: Cell) -> str:
    text = cell.text + (DAGGER if cell.doubtful else "")
    return {"best": f"**{text}**", "tie": f"<u>{text}</u>", "": text}[cell.rank]


def _dagger(one: TableModel) -> str:
    return r"$^\dagger$" if one.doubts else ""


def _tex(text: str) -> str:
    """Text for LaTeX's default fonts: accents stay, letters that these fonts lack become question marks."""
    kept = [one if one.isascii() or _accented(one) else "?" for one in for_line(text)]
    return for_latex("".join(kept))


def _accented(one: str) -> bool:
    parts = normalize("NFKD", one)
    return ord(one) < 0x180 and parts[0].isascii() and parts[0].isalpha() and all(combining(part) for part in parts[1:])
