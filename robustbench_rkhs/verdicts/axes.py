"""Common style of the verdict figures: a colour-blind safe palette, the legend, the axes."""

import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from robustbench_rkhs.verdicts.about import About

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
"""The colours of Okabe and Ito, without yellow, which is hard to see on white."""
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]


def label(axes: Axes, first: Sequence[str], note: str) -> None:
    """The legend, to the right of the axes: labels in `first` in that order, then the others and a note."""
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
    """The label of an eps axis, with its unit."""
    return f"{_norm(norm)} radius eps (pixels in [0, 1])"


def _norm(norm: str) -> str:
    return {"l2": "l2", "linf": "l-infinity"}.get(norm, norm)


def domain(about: About) -> str:
    """Data, norm and box in words, which are the same for all evaluations in a figure."""
    return in_words(about.data, about.norm, about.box)


def in_words(data: str, norm: str, box: str) -> str:
    """The same of these."""
    return f"{data}, {_norm(norm)}{'' if box == 'unit' else ', no box'}"
