"""Common style of the verdict figures: a colour-blind safe palette, the legend, the axes."""

import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from robustbench_rkhs.verdicts.about import About

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
PALETTE += ["#8C1C4B", "#7A7A00", "#5B3FBF", "#8A5A2B", "#8C8C8C"]
"""Twelve colours: those of Okabe and Ito without yellow, which is hard to see on white, then five that differ from all of them."""
MARKERS = ["o", "s", "D", "^", "v", "<", ">", "p", "h", "d", "P", "*"]
CERTIFIED, EMPIRICAL, OPEN = "-", (0, (3.2, 1.6)), 0.16
"""The visual code of all figures: certified is solid (filled), empirical dashed (hollow), open a shaded band of this opacity."""
GREY = "#555555"
"""What belongs to no model."""


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
    which.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    which.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))


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
