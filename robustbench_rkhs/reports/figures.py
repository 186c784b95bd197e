"""What every figure shares: a colour-blind safe palette, words of the axes, and bytes that do not depend on the day."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.verdicts import Evaluation

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
"""Okabe and Ito's colours, yellow left out: it is lost on white."""
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]
STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "robustbench_rkhs",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
"""Metadata left out of each format, so that the same table gives the same bytes."""


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure in our style, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, drawn.subplots()


def save(drawn: Figure, stem: str | Path) -> list[Path]:
    """STEM.png, .pdf and .svg, each whole or absent. Raises UserError where they cannot be written."""
    paths = []
    for kind, metadata in UNDATED.items():
        path = Path(f"{stem}.{kind}")

        def write(temporary: Path, kind: str = kind, metadata: dict[str, None] = metadata) -> None:
            drawn.savefig(temporary, format=kind, dpi=160, metadata=metadata, facecolor="white")

        write_whole(path, write)
        paths.append(path)
    return paths


def label(axes: Axes, first: Sequence[str], note: str) -> None:
    """The legend, right of the axes where it hides nothing: labels called `first` in that order, the others, a note."""
    axes.plot([], [], " ", label=note)
    handles, labels = axes.get_legend_handles_labels()

    def place(which: int) -> tuple[int, int]:
        rank = [rank for rank, start in enumerate(first) if re.split("[:\n]", labels[which])[0] == start]
        return min(rank, default=len(first)) if labels[which] != note else len(first) + 1, which

    order = sorted(range(len(labels)), key=place)
    shown = [handles[which] for which in order], [labels[which] for which in order]
    axes.legend(*shown, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def percent(axes: Axes, axis: str = "y") -> None:
    """An axis of shares from 0 to 100%, with room for a marker at either end."""
    which = axes.yaxis if axis == "y" else axes.xaxis
    which.set_major_formatter(PercentFormatter(1, decimals=0))


def radius_axis(norm: str) -> str:
    """The words of an eps axis, with its unit."""
    return f"{_norm(norm)} radius eps (pixels in [0, 1])"


def _norm(norm: str) -> str:
    return {"l2": "l2", "linf": "l-infinity"}.get(norm, norm)


def domain(about: dict[str, Any]) -> str:
    """Data, norm and box in words: what figures of one group have in common."""
    box = "" if about["box"] == "unit" else ", no box"
    return f"{about['data']}, {_norm(about['norm'])}{box}"


def check_about(evaluations: Sequence[Evaluation]) -> None:
    """Every evaluation says what reports are grouped by. Raises UserError naming what is missing."""
    for evaluation in evaluations:
        missing = [
            key for key in ("model", "weights", "data", "norm", "box", "epsilons", "protocol") if key not in evaluation.about
        ]
        if missing:
            raise UserError(f"the evaluation of {evaluation.about.get('model', '?')!r} does not say its {', '.join(missing)}")


def same_domain(evaluations: Sequence[Evaluation]) -> None:
    """Refuse to put into one figure what cannot be compared. Raises UserError."""
    if not evaluations:
        raise UserError("nothing to draw: expected at least one evaluation")
    check_about(evaluations)
    found = sorted({domain(evaluation.about) for evaluation in evaluations})
    if len(found) > 1:
        raise UserError(f"expected evaluations of one data set, norm and box, found {'; '.join(found)}")


def names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Each model's name; with the first digits of its weights, and a number, where that is not enough to tell them apart."""
    plain = [str(evaluation.about["model"]) for evaluation in evaluations]
    full = [
        name if plain.count(name) == 1 else f"{name} ({str(evaluation.about.get('weights', ''))[:6]})"
        for name, evaluation in zip(plain, evaluations, strict=True)
    ]
    return [f"{name} #{full[:place].count(name) + 1}" if full.count(name) > 1 else name for place, name in enumerate(full)]
