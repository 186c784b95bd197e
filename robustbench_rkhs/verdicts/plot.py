"""Plot of accuracy over eps: certified (solid), empirical (dashed), and what is open between them (shaded)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from robustbench_rkhs.nodes.radius_text import radius_words
from robustbench_rkhs.verdicts.axes import CERTIFIED, EMPIRICAL, OPEN, PALETTE, domain, percent, radius_axis
from robustbench_rkhs.verdicts.model_marks import no_function
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.step_curves import AccuracySteps, accuracy_steps

APART = 0.11
"""Least distance of two tick labels, as a share of the axis."""
WIDE = 1.03
"""The axis goes this many times as far as the largest eps."""


def accuracy_axes(evaluation: Record, axes: Axes | None = None) -> Axes:
    """The curves on these axes, or on those of a new pyplot figure, which notebooks show."""
    if axes is None:
        import matplotlib.pyplot as plt  # importing it chooses a display backend

        axes = plt.figure(figsize=(7.2, 4.0), layout="constrained").subplots()
    steps = accuracy_steps(evaluation)
    draw_steps(axes, steps, PALETTE[0], "o", bars=True)
    dress(axes, [evaluation])
    axes.legend(handles=code(steps.full, bars=True), loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return axes


def draw_steps(axes: Axes, steps: AccuracySteps, colour: str, marker: str, bars: bool = False, band: bool = True) -> None:
    """One model: certified, empirical, a hollow marker where the whole protocol ran; with 95% limits where `bars`."""
    if band:
        eps = np.unique(np.concatenate([steps.empirical.eps, steps.certified.eps, [steps.empirical.end]]))
        low, high = steps.certified.at(eps), steps.empirical.at(eps)
        axes.fill_between(eps, low, np.maximum(low, high), step="post", color=colour, alpha=OPEN, lw=0, zorder=1)
    axes.plot(*steps.certified.corners(), color=colour, lw=1.6, ls=CERTIFIED, zorder=3)
    axes.plot(*steps.empirical.corners(), color=colour, lw=1.6, ls=EMPIRICAL, zorder=3)
    tested = [row for row in steps.tested if row["eps"] > 0]
    eps = np.array([row["eps"] for row in tested])
    axes.plot(eps, [row["robust"] for row in tested], marker, color=colour, mfc="white", ms=6, mew=1.4, zorder=5)
    if bars:
        proved = [row for row in steps.points if row["eps"] > 0]
        for row in proved:  # pale and broad, so that both limits are seen where they overlap
            axes.plot([row["eps"]] * 2, [row["certified_low"], row["certified_high"]], color=colour, alpha=0.35, lw=4,
                      solid_capstyle="butt", zorder=2)  # fmt: skip
        limits = [[abs(row["robust"] - row[f"robust_{end}"]) for row in tested] for end in ("low", "high")]
        robust = [row["robust"] for row in tested]
        axes.errorbar(eps, robust, limits, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, zorder=4)


def code(full: bool, colour: str = PALETTE[0], bars: bool = False) -> list[Any]:
    """The legend of the visual code. `full`: certified radii were searched for, not stopped at requested eps."""
    line: dict[str, Any] = {"color": colour, "lw": 1.6}
    return [
        Line2D([], [], ls=EMPIRICAL, label="empirical: not broken,\nan upper bound", **line),
        Line2D([], [], ls="", marker="o", mfc="white", mew=1.4, ms=6, color=colour, label="all attacks ran"),
        Patch(color=colour, alpha=OPEN, lw=0, label="open"),
        Line2D([], [], ls=CERTIFIED, label="certified: proved" + ("" if full else "\n(at requested eps)"), **line),
        *([Line2D([], [], ls="", label="bars: 95% limits")] if bars else []),
    ]  # fmt: skip


def dress(axes: Axes, evaluations: Sequence[Record], title: bool = True) -> None:
    """Axes of accuracy over eps: their words, ticks, limits and title."""
    about = evaluations[0].about
    largest = max((eps for one in evaluations for eps in one.about.epsilons), default=1.0) or 1.0
    axes.set_xlabel(radius_axis(about.norm))
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(0, WIDE * largest)
    percent(axes)
    radius_ticks(axes, evaluations, WIDE * largest)
    if title:
        who = "" if len(evaluations) > 1 else f"{about.model}: "
        axes.set_title(f"{who}{domain(about)}, {images_in_words(evaluations)}", loc="left")


def radius_ticks(axes: Axes, evaluations: Sequence[Record], width: float) -> None:
    """Where eps were typed as fractions, ticks at these, in the same words; else matplotlib's."""
    texts = list(dict.fromkeys(text for one in evaluations for text in one.about.eps_text))
    words = {eps: radius_words(eps, texts) for one in evaluations for eps in one.about.epsilons if eps > 0}
    if not any("/" in text for text in words.values()):
        return
    ticks = {0.0: "0"}
    for eps in sorted(words, reverse=True):
        if all(abs(eps - other) >= APART * width for other in ticks):
            ticks[eps] = words[eps]
    axes.set_xticks(list(ticks), list(ticks.values()))


def images_in_words(evaluations: Sequence[Record]) -> str:
    """`200 images`, or `50 to 200 images`; and the models whose accuracies are withheld, with their marks."""
    counts = sorted({evaluation.table["index"].nunique() for evaluation in evaluations})
    images = f"{counts[0]:,} images" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} images"
    named = [f"{one.about.model} ({why.split(':')[0]})" for one in evaluations if (why := no_function(one))]
    return f"{images}; withheld: {', '.join(named)}" if named else images
