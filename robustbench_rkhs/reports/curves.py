"""Accuracy-versus-eps curves: certified, empirical, and the gap between them."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from robustbench_rkhs.reports.figures import (
    farthest_limit,
    figure,
    legend_above,
    names,
    same_domain,
    save,
    shortened,
    small_print,
    sources,
)
from robustbench_rkhs.reports.natural_order import natural
from robustbench_rkhs.verdicts import AccuracySteps, Record, accuracy_steps
from robustbench_rkhs.verdicts.axes import GREY, MARKERS, PALETTE, domain
from robustbench_rkhs.verdicts.plot import code, draw_steps, dress, images_in_words

BANDS = 4
"""With more models than this in one panel the open bands are left out, as they would hide one another."""
COLUMNS = 4
"""Columns of small multiples."""


def draw_curve(evaluations: Sequence[Record], stem: str | Path, titles: Sequence[str] = (), note: str = "") -> list[Path]:
    """STEM.png, .pdf, .svg: certified and empirical accuracy at every eps from 0 to the largest requested one.

    Solid: certified. Dashed: not broken, from each image's nearest adversarial image, an upper bound of robust accuracy.
    Hollow markers: eps at which every attack of the protocol ran. Shaded: open. One colour for each of up to twelve models;
    beyond that, a panel each. `titles`: names to print in place of the models'; `note`: the command that draws it.
    Raises UserError for no evaluation, several data sets, norms or boxes, or no space.
    """
    same_domain(evaluations)
    labels = [shortened(name) for name in (titles or names(evaluations))]
    steps = [accuracy_steps(one) for one in evaluations]
    if len(evaluations) > len(PALETTE):
        return _small_multiples(evaluations, steps, labels, stem, note)
    with figure(7.4, 4.2) as (drawn, axes):
        alone, full = len(steps) == 1, all(one.full for one in steps)
        for place, one in enumerate(steps):
            draw_steps(axes, one, PALETTE[place], MARKERS[place], bars=alone, band=len(steps) <= BANDS)
        dress(axes, evaluations)
        handles = code(full, PALETTE[0] if alone else GREY, bars=alone)
        if not alone:
            who = [
                Line2D([], [], color=PALETTE[place], lw=1.6, marker=MARKERS[place], mfc="white", mew=1.4, ms=6, label=name)
                for place, name in enumerate(labels)
            ]
            handles = [*who, *(one for one in handles if len(steps) <= BANDS or one.get_label() != "open")]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0, handlelength=2.4)
        small_print(
            drawn, [*filter(None, [note]), *sources(evaluations), *_partly(steps, labels), *([] if alone else [_limits(steps)])]
        )
        return save(drawn, stem)


def _limits(steps: Sequence[AccuracySteps]) -> str:
    """The widest 95% limits in the figure, in place of bars that would hide one another."""
    rows = [row for one in steps for row in one.points]
    farthest = 100 * farthest_limit(rows, ("robust", "certified"))
    return f"Clopper-Pearson 95% limits of each share: at most {farthest:.1f} points either way"


def _partly(steps: Sequence[AccuracySteps], labels: Sequence[str]) -> list[str]:
    """Which of several models are certified at requested eps only."""
    some = [label for one, label in zip(steps, labels, strict=True) if not one.full]
    return [f"certified at requested eps only, a step below in between: {', '.join(some)}"] if some else []


def _small_multiples(
    evaluations: Sequence[Record], steps: Sequence[AccuracySteps], labels: Sequence[str], stem: str | Path, note: str
) -> list[Path]:
    """A panel for each model on common axes, in the order of names, with numbers in them read as numbers."""
    order = sorted(range(len(labels)), key=lambda place: natural(labels[place]))
    rows = -(-len(order) // COLUMNS)
    with figure(9.2, 1.1 + 1.75 * rows) as (drawn, first):
        first.remove()
        panels = drawn.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(order) :]:
            axes.axis("off")
        for number, (place, axes) in enumerate(zip(order, panels.flat, strict=False)):
            draw_steps(axes, steps[place], PALETTE[0], "o")
            dress(axes, evaluations, title=False)
            axes.set_title(labels[place], loc="left", fontsize=9)
            _outer(axes, number, len(order))
        about = evaluations[0].about
        legend_above(drawn, code(all(one.full for one in steps)), f"{domain(about)}, {images_in_words(evaluations)}", COLUMNS)
        small_print(drawn, [*filter(None, [note]), *sources(evaluations), *_partly(steps, labels), _limits(steps)])
        return save(drawn, stem)


def _outer(axes: Axes, number: int, panels: int) -> None:
    """Words on the outer axes alone."""
    lowest = number + COLUMNS >= panels
    axes.set_xlabel("eps" if number >= COLUMNS * ((panels - 1) // COLUMNS) else "")
    axes.tick_params(labelbottom=lowest)
    axes.set_ylabel("accuracy" if number % COLUMNS == 0 else "")
    axes.set_yticks([0, 0.5, 1])
