"""The tightness report as csv, Markdown, a figure, and on the terminal."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.table import Table

from robustbench_rkhs.reports.figures import figure, legend_above, save, small_print
from robustbench_rkhs.reports.tables import bullets, csv, markdown, write_bytes
from robustbench_rkhs.runtime.sinks import for_line, for_markdown
from robustbench_rkhs.verdicts.axes import GREY, PALETTE

LAYERS = ["layer", "proven", "empirical", "found by", "ratio", "share of what is lost"]
NETWORK = ["proven bound of f_y - f_j", "largest pair", "empirical", "ratio", "median ratio of pairs"]
WIDE = 20
"""From this ratio of the largest to the smallest value on, the axis is logarithmic."""
NOTE = (
    "Output l2 per unit of input l2. Proven bounds hold everywhere. Empirical values lie below the truth: of affine layers the "
    "norm found on the operator, of others the largest Jacobian norm at the images; of the network the steepest gradient at the "
    "images, or quotient found by ascent. So a ratio is what may be lost at most, not what is. Share: log(ratio) of the layer over "
    "their sum."
)


def write_tightness(report: dict[str, Any], stem: str | Path) -> list[Path]:
    """STEM.csv, .md, .png, .pdf and .svg. Raises UserError where not writable."""
    texts = {"csv": _csv(report), "md": _markdown(report)}
    return [*(write_bytes(Path(f"{stem}.{kind}"), text) for kind, text in texts.items()), *draw_tightness(report, stem)]


def draw_tightness(report: dict[str, Any], stem: str | Path) -> list[Path]:
    """STEM.png, .pdf, .svg: a row per layer: filled its proven bound, hollow the empirical value, a line for what may be lost.

    The layer that loses most is highlighted; the ratio and its share of what is lost stand beside it.
    """
    rows = [row for row in report["layers"] if not _idle(row)] or report["layers"]
    left, about = len(report["layers"]) - len(rows), report["about"]
    values = [value for row in rows for value in (row["upper"], row["lower"]) if value]
    with figure(7.0, 1.9 + 0.32 * len(rows)) as (drawn, axes):
        for place, row in enumerate(rows):
            colour = PALETTE[1] if row["layer"] == report["waster"] else PALETTE[0]
            if row["upper"] and row["lower"]:
                axes.plot([row["lower"], row["upper"]], [place] * 2, color=colour, lw=2.5, alpha=0.35, zorder=2)
            if row["lower"]:
                axes.plot(row["lower"], place, "o", color=colour, mfc="white", ms=9, mew=1.4, zorder=3)
            if row["upper"]:
                axes.plot(row["upper"], place, "o", color=colour, ms=5, zorder=4)
            ratio = "no proof" if row["upper"] is None else "flat here" if row["ratio"] is None else f"{row['ratio']:.3g}x"
            share = f"{row['share']:.0%}" if row["share"] else "-"
            for number, text in enumerate((ratio, share)):
                axes.annotate(text, (1.0, place), xytext=(62 + 40 * number, 0), xycoords=("axes fraction", "data"),
                              textcoords="offset points", ha="right", va="center", fontsize=9, color=colour)  # fmt: skip
        for number, head in enumerate(("ratio", "share")):
            axes.annotate(head, (1.0, -0.6), xytext=(62 + 40 * number, 2), xycoords=("axes fraction", "data"),
                          textcoords="offset points", ha="right", va="bottom", fontsize=9, color=GREY)  # fmt: skip
        if values and max(values) > WIDE * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(values) < 1e3 * min(values) else (1.0,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, 1.08 * max(values, default=1.0))
        axes.set_yticks(range(len(rows)), [for_line(row["layer"]) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("output l2 per unit of input l2")
        legend_above(drawn, _code(bool(report["waster"])), f"{about['model']}: where the certificate is lost, {about['data']}", 3)
        more = [f"{left} layers of bound 1 that lose nothing are left out"] if left else []
        small_print(drawn, [_origin(about), *more])
        return save(drawn, stem)


def _code(waster: bool) -> list[Any]:
    """The legend."""
    dot: dict[str, Any] = {"ls": "", "marker": "o", "color": GREY}
    handles = [
        Line2D([], [], **dot, ms=5, label="filled: proven bound"),
        Line2D([], [], **dot, ms=9, mfc="white", label="hollow: empirical"),
    ]
    return handles + ([Line2D([], [], **dot | {"color": PALETTE[1]}, ms=5, label="loses most")] if waster else [])


def console_tightness(report: dict[str, Any]) -> list[Table]:
    """Layers and network for a terminal."""
    about = report["about"]
    layers = Table(title=f"{about['model']}: layers, {about['data']}, {about['samples']} images", title_justify="left")
    for column in LAYERS:
        layers.add_column(column, justify="left" if column in ("layer", "found by") else "right")
    for cells in _layers(report):
        layers.add_row(*cells)
    network = Table(title=f"{about['model']}: network", title_justify="left")
    for column in NETWORK:
        network.add_column(column, justify="left" if column == NETWORK[0] else "right")
    for cells in _network(report):
        network.add_row(*cells)
    network.caption = "; ".join(findings(report))
    return [layers, network]


def findings(report: dict[str, Any]) -> list[str]:
    """The conclusions from the tables, one line each."""
    lines = []
    if report["waster"]:
        worst = next(row for row in report["layers"] if row["layer"] == report["waster"])
        lines.append(f"{report['waster']} loses most: {worst['ratio']:.3g}x, {worst['share']:.0%} of what the layers lose")
    else:
        lines.append("no layer loses anything measurable")
    if report["between"] is not None:
        between = 2.718281828459045 ** report["between"]
        lines.append(f"between the layers, which are not steepest together, the product loses {between:.3g}x more")
    if report["images"]:
        found = report["images"]
        lines.append(
            f"certified radius over nearest adversarial distance: median {found['median']:.2f} of {found['images']} images"
        )
    if report["refused"]:
        lines.append(f"nothing is proved of the whole: {report['refused']}")
    return lines


def _idle(row: dict[str, Any]) -> bool:
    return bool(row["upper"] == 1 and row["lost"] == 0)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _layers(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["layer"],
            _number(row["upper"]),
            _number(row["lower"]),
            row["empirical"],
            _number(row["ratio"]),
            "-" if row["share"] is None else f"{row['share']:.1%}",
        ]
        for row in report["layers"]
    ]


def _network(report: dict[str, Any]) -> list[list[str]]:
    return [
        [row["bound"], *(_number(row[key]) for key in ("upper", "lower", "ratio", "median_ratio"))]
        if not row["refused"]
        else [row["bound"], "refused", _number(row["lower"]), "-", "-"]
        for row in report["network"]
    ]


def _origin(about: dict[str, Any]) -> str:
    digests = f"weights {about['weights'][:12]}, data {about['data_digest'][:12]}"
    return f"{about['command']}, {about['date']}, seed {about['seed']}, {digests}, torch {about['torch']}"


def _csv(report: dict[str, Any]) -> str:
    about = {key: report["about"][key] for key in ("model", "weights", "data", "data_digest", "samples", "seed", "date", "command")}
    rows = [{"row": "layer", "name": row["layer"], **row} for row in report["layers"]]
    rows += [{"row": "network", "name": row["bound"], **row} for row in report["network"]]
    frame = pd.DataFrame([row | about for row in rows]).drop(columns=["layer", "bound"])
    return csv(frame)


def _markdown(report: dict[str, Any]) -> str:
    about = report["about"]
    parts = [
        f"# Tightness of {for_markdown(about['model'])}\n",
        for_markdown(f"{_origin(about)}; {about['samples']} test images of {about['data']}; {about['arithmetic']}.") + "\n",
        "\n".join(bullets(findings(report))) + "\n",
        "## Layers\n",
        markdown(LAYERS, _layers(report)),
        "## Network\n",
        markdown(NETWORK, _network(report)),
        f"{NOTE}\n",
    ]
    return "\n".join(parts)
