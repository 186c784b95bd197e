"""The RKHS-norm report as json, csv, Markdown, a figure, and on the terminal."""

from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.table import Table

from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.reports.figures import figure, legend_above, save, small_print
from robustbench_rkhs.reports.tables import csv, markdown, write_bytes
from robustbench_rkhs.runtime.seals import write_record
from robustbench_rkhs.runtime.sinks import for_markdown
from robustbench_rkhs.verdicts.axes import GREY, MARKERS, PALETTE

COLUMNS = {"class": "largest class", "pair": "largest pair", "logits": "all logits"}
"""Columns of the bounds: for f_k, for f_y - f_j, for f as a map to l2."""
WIDE = 20
"""From this ratio of the largest to the smallest value on, the axis is logarithmic."""
NOTE = (
    "Logits per unit l2 of input. Lower bounds hold for the RKHS norm and for the Lipschitz constant alike; the proven bound is of "
    "the Lipschitz constant, caps every lower bound, and is not a bound of the RKHS norm. The reshaped product is the quantity the "
    "paper controls; for convolutions it is no bound of the operator. The searches begin at the steepest images."
)
CAUTION = (
    "Shown with estimates from below, the margin bound says what it would say if the estimate were the norm: nothing is certified "
    "by it. The complexity term N B / (gamma sqrt(n)) leaves constants and logarithms out."
)


def write_norms(report: dict[str, Any], stem: str | Path) -> list[Path]:
    """STEM.json (everything, sealed), .csv (the bounds by class), .md, and the figure. Raises UserError if not writable."""
    texts = {"csv": _csv(report), "md": _markdown(report)}
    write_record(Path(f"{stem}.json"), report, indent=1)
    written = [Path(f"{stem}.json"), *(write_bytes(Path(f"{stem}.{kind}"), text) for kind, text in texts.items())]
    return [*written, *draw_norms(report, stem)]


def draw_norms(report: dict[str, Any], stem: str | Path) -> list[Path]:
    """STEM.png, .pdf, .svg: a row of dots for each bound, and their numbers beside it.

    Hollow: measured, a lower bound. Filled: proved, an upper bound. A cross: no bound.
    """
    rows, about = report["bounds"], report["about"]
    with figure(7.2, 2.0 + 0.36 * len(rows)) as (drawn, axes):
        for place, row in enumerate(rows):
            for number, key in enumerate(COLUMNS):
                if row[key]:
                    _dot(axes, row, row[key], place, number)
        values = [row[key] for row in rows for key in COLUMNS if row[key]]
        if values and max(values) > WIDE * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(values) < 1e3 * min(values) else (1.0,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, 1.08 * max(values, default=1.0))
        axes.set_yticks(range(len(rows)), [_words(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("logits per unit l2 of input")
        dot: dict[str, Any] = {"ls": "", "marker": "o", "color": GREY, "ms": 7, "mew": 1.4}
        handles = [
            Line2D([], [], **dot | {"color": PALETTE[n], "marker": MARKERS[n]}, label=word)
            for n, word in enumerate(COLUMNS.values())
        ]
        sides = [
            Line2D([], [], **dot, mfc="white", label="hollow: lower bound"),
            Line2D([], [], **dot, label="filled: proved from above"),
        ]
        sides += [Line2D([], [], **dot | {"marker": "x"}, label="cross: no bound")] if any(_no_bound(row) for row in rows) else []
        handles = [one for pair in zip_longest(handles, sides, fillvalue=Line2D([], [], ls="", label="")) for one in pair]
        title = f"{about['model']}: RKHS norm and Lipschitz bounds, {about['data']}, {about['samples']} images"
        legend_above(drawn, handles, title, 3)
        small_print(drawn, [origin(about)])
        return save(drawn, stem)


def _dot(axes: Axes, row: dict[str, Any], value: float, place: int, number: int) -> None:
    """A bound as a dot, and as a number in its column right of the axes."""
    colour, hollow = PALETTE[number], row["side"] == "lower"
    marker = "x" if _no_bound(row) else MARKERS[number]
    shift = 0.16 * (number - 1)  # dots at the same value stay apart
    axes.plot(value, place + shift, marker, color=colour, mfc="white" if hollow else colour, ms=6.5, mew=1.4, zorder=3)
    axes.annotate(f"{value:.3g}", (1.0, place), xytext=(34 + 34 * number, 0), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", va="center", fontsize=9, color=colour)  # fmt: skip


def _no_bound(row: dict[str, Any]) -> bool:
    return str(row["side"]).startswith("not")


def console_norms(report: dict[str, Any]) -> Table:
    """The bounds for a terminal."""
    about = report["about"]
    table = Table(title=f"{about['model']}: RKHS norm, {about['data']}, {about['samples']} images", title_justify="left")
    for column in ("bound", "side", *COLUMNS.values()):
        table.add_column(column, justify="right" if column in COLUMNS.values() else "left")
    for cells in _cells(report):
        table.add_row(*cells)
    table.caption = "; ".join(["logits per unit l2 of input", *refusals(report)])
    return table


def origin(about: dict[str, Any]) -> str:
    """Where the numbers come from: command, date, seed, digests of weights and data."""
    digests = f"weights {about['weights'][:12]}, data {about['test_digest'][:12]}"
    return f"{about['command']}, {about['date']}, seed {about['seed']}, {digests}, torch {about['torch']}"


def refusals(report: dict[str, Any]) -> list[str]:
    """Bounds that are missing above, with the reasons."""
    return [f"{name}: {why}" for name, why in report["refusals"].items() if why]


def _words(row: dict[str, Any]) -> str:
    return f"{row['bound']}\n({row['side']})" if row["side"].startswith("not") else str(row["bound"])


def _cells(report: dict[str, Any]) -> list[list[str]]:
    changes = [report["deformation_changes"]] if report["deformation_changes"] else []
    rows = [*report["bounds"], *(change | {"side": "logits, not per unit"} for change in changes)]
    return [[row["bound"], row["side"], *("-" if row[key] is None else f"{row[key]:.4g}" for key in COLUMNS)] for row in rows]


def _exceeded(report: dict[str, Any]) -> list[str]:
    """A remark if a measured lower bound lies above the reshaped product."""
    lower = max((row["logits"] for row in report["bounds"] if row["side"] == "lower"), default=0.0)
    found = [row["logits"] for row in report["bounds"] if row["bound"] == "reshaped product" and row["logits"] < lower]
    return [f"Here the reshaped product, {value:.4g}, lies below what was measured, {lower:.4g}." for value in found]


def _csv(report: dict[str, Any]) -> str:
    rows = []
    named = {key: report["about"][key] for key in ("model", "weights", "data", "test_digest", "samples", "seed", "date", "command")}
    changes = [report["deformation_changes"]] if report["deformation_changes"] else []
    for row in [*report["bounds"], *changes]:
        classes = {f"class {k}": value for k, value in enumerate(row["classes"] or [])}
        rows.append({key: row[key] for key in ("bound", "side", *COLUMNS)} | classes | named)
    return csv(pd.DataFrame(rows))


def _markdown(report: dict[str, Any]) -> str:
    about, margins = report["about"], report["margins"]
    named = [row for row in report["bounds"] if row["classes"]]
    classes = range(len(named[0]["classes"])) if named else range(0)
    quantiles = [f"{share:.0%}" for share in margins["quantiles"]]
    smallest = min(about["eps"])
    at = [bound for bound in margins["bounds"] if bound["eps"] == smallest]
    normalised = [[bound["estimate"], f"{bound['norm']:.4g}", *(f"{q:.3g}" for q in bound["normalised"])] for bound in at]
    plain = ["1 (plain margins, in logits)", "1", *(f"{q:.3g}" for q in margins["plain"])]
    gammas = [f"{gamma:.3g}" for gamma in margins["bounds"][0]["gammas"]] if margins["bounds"] else []
    first = [[b["estimate"], radius_text(b["eps"]), *(f"{100 * share:.1f}%" for share in b["first"])] for b in margins["bounds"]]
    second = [[b["estimate"], *(f"{term:.3g}" for term in b["complexity"])] for b in at]
    parts = [
        f"# RKHS norm of {for_markdown(about['model'])}\n",
        f"{for_markdown(origin(about))}; {about['samples']} test images of {for_markdown(about['data'])}, "
        f"training digest {about['train_digest'][:12]}; "
        f"{about['arithmetic']}.\n",
        "## Bounds\n",
        markdown(["bound", "side", *COLUMNS.values()], _cells(report)),
        "\n".join([NOTE, *_exceeded(report), *(f"Refused: {for_markdown(line)}" for line in refusals(report))]) + "\n",
        "### Class by class\n",
        markdown(["bound", *(f"f_{k}" for k in classes)], [[r["bound"], *(f"{v:.3g}" for v in r["classes"])] for r in named]),
        "## Margins of the training images\n",
        f"Quantiles over {about['margins_of']} of {about['training_images']} training images of (f_y - max_j f_j) / N, N each "
        "estimate of max ||f_y - f_j||: the radius it would prove if N were a bound, which only the proven row is.\n",
        markdown(["N from", "N", *quantiles], [plain, *normalised]),
        "## Margin bound on adversarial error\n",
        "With probability 1 - delta, for all gamma > 0: adversarial error at eps <= share of training images of margin below "
        f"gamma + 2 eps N, plus O~(N B / (gamma sqrt(n))), B = {margins['B']:.4g}, n = {about['training_images']}. {CAUTION}\n",
        "First term, by gamma (logits):\n",
        markdown(["N from", "eps", *gammas], first),
        "Complexity term, by gamma (constants and logarithms left out; above 1 it says nothing):\n",
        markdown(["N from", *gammas], second),
    ]
    return "\n".join(parts)
