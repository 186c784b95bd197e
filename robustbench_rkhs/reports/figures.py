"""Common functions of all figures: one style, and reproducible bytes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.runtime.sinks import for_terminal
from robustbench_rkhs.verdicts import Record
from robustbench_rkhs.verdicts.axes import domain

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
LONGEST = 1000
"""Most characters of a text in a figure; longer ones would widen the figure."""
UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
"""Metadata left out of each format, so that the same table gives the same bytes."""


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure in our style, independent of the user's matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, drawn.subplots()


def save(drawn: Figure, stem: str | Path) -> list[Path]:
    """STEM.png, .pdf and .svg, each whole or absent. Raises UserError where they cannot be written."""
    paths = []
    for text in drawn.findobj(Text):
        text.set_text(for_terminal(text.get_text())[:LONGEST])
    for kind, metadata in UNDATED.items():
        path = Path(f"{stem}.{kind}")

        def write(temporary: Path, kind: str = kind, metadata: dict[str, None] = metadata) -> None:
            drawn.savefig(temporary, format=kind, dpi=160, metadata=metadata, facecolor="white")

        write_whole(path, write)
        paths.append(path)
    return paths


def same_domain(evaluations: Sequence[Record]) -> None:
    """Raises UserError for evaluations that cannot be compared in one figure."""
    if not evaluations:
        raise UserError("nothing to draw: expected at least one evaluation")
    found = sorted({domain(evaluation.about) for evaluation in evaluations})
    if len(found) > 1:
        raise UserError(f"expected evaluations of one data set, norm and box, found {'; '.join(found)}")


def names(evaluations: Sequence[Record]) -> list[str]:
    """Distinct labels: each model's name, with the first digits of its key and a number where names repeat."""
    plain = [evaluation.about.model for evaluation in evaluations]
    full = [
        name if plain.count(name) == 1 else f"{name} ({(evaluation.about.key or evaluation.about.weights)[:6]})"
        for name, evaluation in zip(plain, evaluations, strict=True)
    ]
    return [f"{name} #{full[:place].count(name) + 1}" if full.count(name) > 1 else name for place, name in enumerate(full)]
