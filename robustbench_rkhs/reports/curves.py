"""Accuracy-versus-eps curves: certified, empirical, and the gap between them."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from robustbench_rkhs.reports.figures import figure, names, same_domain, save
from robustbench_rkhs.verdicts import Record, curve
from robustbench_rkhs.verdicts.axes import MARKERS, PALETTE, label
from robustbench_rkhs.verdicts.plot import DENSE, asked, bars, draw_one, dress

BANDS = 4
"""With more models than this, certified curves have no bands, which would hide one another."""


def draw_curve(evaluations: Sequence[Record], stem: str | Path) -> list[Path]:
    """STEM.png, .pdf, .svg: certified and empirical accuracy over eps, with 95% Clopper-Pearson limits.

    One model: the gap between both curves is shaded `open`. Several: one colour each, solid empirical, dashed certified.
    Empirical accuracy is known only at tested eps (markers); lines between them guide the eye, and are solid for one model if
    its attacks cover nearly every eps. Raises UserError for no evaluation, several data sets, norms or boxes, or no space.
    """
    same_domain(evaluations)
    wide = len(evaluations) > 1
    with figure(7.8, 3.9) as (drawn, axes):
        if wide:
            _compare(axes, evaluations)
        else:
            draw_one(axes, evaluations[0])
        dress(axes, evaluations)
        return save(drawn, stem)


def _compare(axes: Axes, evaluations: Sequence[Record]) -> None:
    for place, (evaluation, name) in enumerate(zip(evaluations, names(evaluations), strict=True)):
        colour, marker = PALETTE[place % len(PALETTE)], MARKERS[(place // len(PALETTE) + place) % len(MARKERS)]
        points = curve(evaluation)
        tested = asked(points, evaluation)
        if len(evaluations) <= BANDS:
            axes.fill_between(points["eps"], points["certified_low"], points["certified_high"], color=colour, alpha=0.1, lw=0)
        axes.plot(points["eps"], points["certified"], color=colour, lw=1.4, ls=(0, (4, 2)))
        axes.plot(tested["eps"], tested["robust"], color=colour, lw=1.4)
        if len(tested) >= DENSE * len(points):
            axes.plot([], [], color=colour, lw=1.4, label=name)
        else:
            bars(axes, tested, colour, marker, label=name)
    axes.plot([], [], color="#555555", lw=1.4, label="robust (known at markers)")
    axes.plot([], [], color="#555555", lw=1.4, ls=(0, (4, 2)), label="certified")
    label(axes, names(evaluations), "bands, bars: 95% limits")
