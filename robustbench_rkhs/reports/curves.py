"""Accuracy versus eps: what is proved, what withstood the attacks, and the gap between them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from robustbench_rkhs.reports.figures import MARKERS, PALETTE, domain, figure, label, names, percent, radius_axis, same_domain, save
from robustbench_rkhs.verdicts import Evaluation, curve

BANDS = 4
"""With more models than this, certified curves go without bands: they would hide one another."""
DENSE = 0.9
"""From this share of grid points tested on, the empirical curve is a curve; below, markers joined by a guide to the eye."""


def draw_curve(evaluations: Sequence[Evaluation], stem: str | Path) -> list[Path]:
    """STEM.png, .pdf, .svg: certified and empirical accuracy over eps, with 95% Clopper-Pearson limits.

    One model: the gap between both curves is shaded `open`. Several: one colour each, solid empirical, dashed certified.
    Empirical accuracy is known at tested eps only (markers); lines between them guide the eye, and are solid for one model where
    its attacks answer nearly every eps. Raises UserError for no evaluation, several data sets, norms or boxes, or no space.
    """
    same_domain(evaluations)
    wide = len(evaluations) > 1
    with figure(7.8, 3.9) as (drawn, axes):
        if wide:
            _compare(axes, evaluations)
        else:
            _one(axes, evaluations[0])
        about = evaluations[0].about
        axes.set_xlabel(radius_axis(about["norm"]))
        axes.set_ylabel("accuracy")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(left=-0.01 * axes.get_xlim()[1])
        percent(axes)
        counts = sorted({evaluation.table["index"].nunique() for evaluation in evaluations})
        images = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        who = "" if wide else f"{about['model']}: "
        axes.set_title(f"{who}{domain(about)}, {images} images", loc="left", fontsize=9)
        return save(drawn, stem)


def _one(axes: Axes, evaluation: Evaluation) -> None:
    points = curve(evaluation)
    tested = _asked(points, evaluation)
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
        _bars(axes, tested, PALETTE[1], "o", label="robust: no attack broke it\n(known at markers)")
    label(axes, ["robust", "open", "certified"], "bands, bars: 95% limits")


def _compare(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    for place, (evaluation, name) in enumerate(zip(evaluations, names(evaluations), strict=True)):
        colour, marker = PALETTE[place % len(PALETTE)], MARKERS[(place // len(PALETTE) + place) % len(MARKERS)]
        points = curve(evaluation)
        tested = _asked(points, evaluation)
        if len(evaluations) <= BANDS:
            axes.fill_between(points["eps"], points["certified_low"], points["certified_high"], color=colour, alpha=0.1, lw=0)
        axes.plot(points["eps"], points["certified"], color=colour, lw=1.4, ls=(0, (4, 2)))
        axes.plot(tested["eps"], tested["robust"], color=colour, lw=1.4)
        if len(tested) >= DENSE * len(points):
            axes.plot([], [], color=colour, lw=1.4, label=name)
        else:
            _bars(axes, tested, colour, marker, label=name)
    axes.plot([], [], color="#555555", lw=1.4, label="robust (known at markers)")
    axes.plot([], [], color="#555555", lw=1.4, ls=(0, (4, 2)), label="certified")
    label(axes, names(evaluations), "bands, bars: 95% limits")


def _asked(points: pd.DataFrame, evaluation: Evaluation) -> pd.DataFrame:
    """Points whose robust accuracy is known: all, where that is most of the curve, else eps 0 and those asked for.

    Below the smallest certified radius everything is known; markers there would say nothing.
    """
    tested = points[points["tested"]]
    if len(tested) >= DENSE * len(points):
        return tested
    return tested[tested["eps"].isin([0.0, *(float(eps) for eps in evaluation.about["epsilons"])])]


def _bars(axes: Axes, tested: pd.DataFrame, colour: str, marker: str, label: str) -> None:
    """Markers at tested eps with their 95% limits."""
    robust = tested["robust"].to_numpy()
    limits = np.abs(np.stack([robust - tested["robust_low"].to_numpy(), tested["robust_high"].to_numpy() - robust]))
    axes.errorbar(tested["eps"], robust, yerr=limits, fmt=marker, ms=4.5, color=colour, elinewidth=1, capsize=2, label=label)
