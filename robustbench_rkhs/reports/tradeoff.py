"""Trade-off plot: clean accuracy against empirical and certified accuracy at one eps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.figures import farthest_limit, figure, names, same_domain, save, shortened, small_print, sources
from robustbench_rkhs.reports.pareto import staircase
from robustbench_rkhs.reports.point_labels import label_points
from robustbench_rkhs.verdicts import Record, no_function, summary, typed
from robustbench_rkhs.verdicts.axes import CERTIFIED, EMPIRICAL, GREY, MARKERS, OPEN, PALETTE, domain, percent
from robustbench_rkhs.verdicts.plot import images_in_words

MARGIN = 0.09
"""Room around the points, as a share of their range."""
LEAST = 0.02
"""The least range of an axis: smaller differences are less than one image of fifty."""


def draw_tradeoff(evaluations: Sequence[Record], eps: float, stem: str | Path) -> list[Path]:
    """STEM.png, .pdf, .svg: clean accuracy (x) against accuracy at eps: hollow empirical, filled certified, both axes zoomed.

    The band between the two points of a model is open, the lines are the Pareto fronts. Where images are untested the empirical
    point is absent. Raises UserError for no evaluation, several data sets, norms or boxes, or a negative eps.
    """
    same_domain(evaluations)
    evaluations = [one for one in evaluations if not no_function(one)]
    if not evaluations:
        raise UserError("nothing to draw: every accuracy of these models is withheld")
    rows = [summary(one, [eps]).iloc[0] for one in evaluations]
    text = typed(eps, [one.about for one in evaluations])
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(rows))]
    with figure(6.6, 4.4) as (drawn, axes):
        for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
            _model(axes, row, colour, MARKERS[place % len(MARKERS)])
        _zoom(axes, rows)
        for part, dashes in (("robust", EMPIRICAL), ("certified", CERTIFIED)):
            there = [(float(row["clean"]), float(row[part])) for row in rows if row[part] == row[part]]
            if len(there) > 1:
                corner = staircase(there, axes.get_xlim()[0], axes.get_ylim()[0])
                axes.plot(*corner, color="#999999", lw=1.1, ls=dashes, zorder=1)
        axes.set_xlabel("clean accuracy")
        axes.set_ylabel(f"accuracy at eps {text}")
        axes.set_title(f"{domain(evaluations[0].about)}, {images_in_words(evaluations)}", loc="left")
        axes.legend(
            handles=_code(farthest_limit(rows, ("clean", "robust", "certified"))),
            loc="upper left",
            bbox_to_anchor=(1.01, 1.02),
            borderaxespad=0,
            handlelength=2.4,
        )
        small_print(drawn, sources(evaluations))
        tops = [(row["clean"], row["robust"] if row["robust"] == row["robust"] else row["certified"]) for row in rows]
        others = [(row["clean"], row["certified"]) for row in rows]
        label_points(axes, tops, [shortened(name) for name in names(evaluations)], colours, others)
        return save(drawn, stem)


def _model(axes: Axes, row: Any, colour: str, marker: str) -> None:
    """One model: its two points, and the open band between them."""
    if row["robust"] == row["robust"]:
        axes.plot(
            [row["clean"]] * 2, [row["certified"], row["robust"]], color=colour, lw=7, alpha=OPEN, solid_capstyle="butt", zorder=2
        )
        axes.plot(row["clean"], row["robust"], marker, color=colour, mfc="white", ms=8, mew=1.5, zorder=4)
    axes.plot(row["clean"], row["certified"], marker, color=colour, ms=8, mew=1.5, zorder=4)


def _zoom(axes: Axes, rows: Sequence[Any]) -> None:
    """Both axes to the points, in percent."""
    for axis, parts in (("x", ["clean"]), ("y", ["robust", "certified"])):
        values = [row[part] for row in rows for part in parts]
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        room = max(MARGIN * (high - low), (LEAST - (high - low)) / 2)
        getattr(axes, f"set_{axis}lim")(low - room, high + room)
        percent(axes, axis)


def _code(farthest: float) -> list[Any]:
    """The legend: the visual code."""
    point: dict[str, Any] = {"ls": "", "marker": "o", "color": GREY, "ms": 8, "mew": 1.5}
    return [
        Line2D([], [], mfc="white", label="empirical: not broken,\nan upper bound", **point),
        Patch(color=GREY, alpha=OPEN, lw=0, label="open"),
        Line2D([], [], label="certified: proved", **point),
        Line2D([], [], color="#999999", lw=1.1, ls=EMPIRICAL, label="Pareto front, empirical"),
        Line2D([], [], color="#999999", lw=1.1, ls=CERTIFIED, label="Pareto front, certified"),
        Line2D([], [], ls="", label=f"95% limits: at most\n{100 * farthest:.1f} points either way"),
    ]
