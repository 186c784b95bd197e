"""The tightness report as csv, Markdown, a figure, and on the terminal."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.table import Table

from robustbench_rkhs.reports.figures import figure, save
from robustbench_rkhs.reports.tables import bullets, csv, markdown, write_bytes
from robustbench_rkhs.runtime.sinks import for_markdown
from robustbench_rkhs.verdicts.axes import PALETTE

LAYERS = ["layer", "proven", "empirical", "found by", "ratio", "share of what is lost"]
NETWORK = ["proven bound of f_y - f_j", "largest pair", "empirical", "ratio", "median ratio of pairs"]
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
    """STEM.png, .pdf, .svg: a bar per layer up to its proven bound, a mark at the empirical value; the loosest is highlighted."""
    rows = [row for row in report["layers"] if not _idle(row)] or report["layers"]
    left = len(report["layers"]) - len(rows)
    values = [value for row in rows for value in (row["upper"], row["lower"]) if value]
    smallest, largest = min(values, default=1.0), max(values, default=1.0)
    with figure(7.8, 1.6 + 0.3 * len(rows)) as (drawn, axes):
        origin = min(smallest, 1.0) / 2
        for place, row in enumerate(rows):
            worst = row["layer"] == report["waster"]
            if row["upper"]:
                axes.barh(place, row["upper"] - origin, left=origin, height=0.66, color=PALETTE[1] if worst else "#9ecae1")
            if row["lower"]:
                axes.plot([row["lower"]] * 2, [place - 0.4, place + 0.4], color="black", lw=1.8, solid_capstyle="butt")
            at = max(row["upper"] or origin, row["lower"] or origin)
            text = "no proof" if row["upper"] is None else "flat here" if row["ratio"] is None else f"{row['ratio']:.3g}x"
            text += f", {row['share']:.0%}" if row["share"] else ""
            axes.annotate(text, (at, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
        handles: list[Any] = [Patch(color="#9ecae1", label="proven bound")]
        if report["waster"]:
            handles.append(Patch(color=PALETTE[1], label="proven, loses most"))
        handles += [Line2D([], [], color="black", lw=1.8, label="empirical, from below")]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if largest / origin < 1e3 else (1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(origin, largest * (largest / origin) ** 0.25)
        axes.set_yticks(range(len(rows)), [row["layer"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("output l2 per unit of input l2 (log scale); ratio, and share of what the layers lose")
        about = report["about"]
        axes.set_title(f"{about['model']}: where the certificate is lost, {about['data']}", loc="left", fontsize=9)
        small = f"{_origin(about)}" + (f"; {left} layers of bound 1 that lose nothing left out" if left else "")
        drawn.supxlabel(small, fontsize=5.5, color="#666666")
        return save(drawn, stem)


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
