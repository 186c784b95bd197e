"""Plot of accuracy over eps of one evaluation: certified, robust to the attacks, and the gap between them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from robustbench_rkhs.verdicts.axes import PALETTE, domain, label, percent, radius_axis
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.summaries import curve

DENSE = 0.9
"""From this share of tested grid points on, the empirical results are drawn as a curve; below, as markers joined by lines."""


def accuracy_axes(evaluation: Record, axes: Axes | None = None) -> Axes:
    """The curve on these axes, or on those of a new pyplot figure, which notebooks show."""
    if axes is None:
        import matplotlib.pyplot as plt  # importing it chooses a display backend

        axes = plt.figure(figsize=(7.8, 3.9), layout="constrained").subplots()
    draw_one(axes, evaluation)
    dress(axes, [evaluation])
    return axes


def dress(axes: Axes, evaluations: Sequence[Record]) -> None:
    """Axes of accuracy over eps: their words, limits and title."""
    about = evaluations[0].about
    axes.set_xlabel(radius_axis(about.norm))
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=-0.01 * axes.get_xlim()[1])
    percent(axes)
    counts = sorted({evaluation.table["index"].nunique() for evaluation in evaluations})
    images = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    who = "" if len(evaluations) > 1 else f"{about.model}: "
    axes.set_title(f"{who}{domain(about)}, {images} images", loc="left", fontsize=9)


def draw_one(axes: Axes, evaluation: Record) -> None:
    """Certified and robust accuracy of one model, with 95% limits; the gap between them is shaded."""
    points = curve(evaluation)
    tested = asked(points, evaluation)
    eps, certified = points["eps"].to_numpy(), points["certified"].to_numpy()
    within = points[points["eps"] <= tested["eps"].max()] if len(tested) else points.iloc[:0]
    if len(tested) > 1:
        between = np.maximum(np.interp(within["eps"], tested["eps"], tested["robust"]), within["certified"])
        axes.fill_between(
            within["eps"], within["certified"], between, color="#dddddd", lw=0, label="open: neither proved\nnor broken"
        )
    axes.fill_between(eps, points["certified_low"], points["certified_high"], color=PALETTE[0], alpha=0.2, lw=0)
    axes.plot(eps, certified, color=PALETTE[0], lw=1.6, label="certified: proved")
    dense = len(tested) >= DENSE * len(points)
    if dense:
        axes.fill_between(tested["eps"], tested["robust_low"], tested["robust_high"], color=PALETTE[1], alpha=0.2, lw=0)
        axes.plot(tested["eps"], tested["robust"], color=PALETTE[1], lw=1.6, label="robust: no attack broke it")
    else:
        if len(tested) > 1:
            axes.plot(within["eps"], between, color=PALETTE[1], lw=1.2, ls=(0, (4, 2.5)))
        bars(axes, tested, PALETTE[1], "o", label="robust: no attack broke it\n(known at markers)")
    label(axes, ["robust", "open", "certified"], "bands, bars: 95% limits")


def asked(points: pd.DataFrame, evaluation: Record) -> pd.DataFrame:
    """Points with known robust accuracy: all, if that is most of the curve, else eps 0 and the requested eps.

    Below the smallest certified radius everything is known; markers there would add nothing.
    """
    tested = points[points["tested"]]
    if len(tested) >= DENSE * len(points):
        return tested
    return tested[tested["eps"].isin([0.0, *evaluation.about.epsilons])]


def bars(axes: Axes, tested: pd.DataFrame, colour: str, marker: str, label: str) -> None:
    """Markers at tested eps with their 95% limits."""
    robust = tested["robust"].to_numpy()
    limits = np.abs(np.stack([robust - tested["robust_low"].to_numpy(), tested["robust_high"].to_numpy() - robust]))
    axes.errorbar(tested["eps"], robust, yerr=limits, fmt=marker, ms=4.5, color=colour, elinewidth=1, capsize=2, label=label)
