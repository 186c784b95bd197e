"""The charts, as Vega-Lite with named data: the browser draws them, and vl-convert makes the same figure as svg and png."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt

from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.site.pages import write_changed
from robustbench_rkhs.site.stills import begin_stills
from robustbench_rkhs.verdicts import About
from robustbench_rkhs.verdicts.axes import PALETTE, radius_axis
from robustbench_rkhs.verdicts.plot import APART, WIDE

BLUE = PALETTE[0]
WIDTH, HEIGHT = 560, 320
GAP = 8
"""Between a point and its name."""
LEFT_HALF = "scale('x', datum.x) < width / 2"
NAME = 300
"""Pixels of a name in the legend, beyond which it is cut: a third of the widest figure, and a phone."""
TICKS = 8
"""About how many ticks the curve's axis has."""
CONFIG = {"background": "white", "font": "DejaVu Sans", "view": {"stroke": "transparent"}}


Ticks = tuple[tuple[float, str], ...]
"""Places of an axis and the words there."""


def typed_ticks(about: About) -> Ticks:
    """0 and the requested eps where some were typed as fractions, those that lie apart; else none, which leaves them to Vega."""
    words = {eps: about.words(eps) for eps in about.epsilons if eps > 0}
    if not any("/" in text for text in words.values()):
        return ()
    found = {0.0: "0"}
    for eps in sorted(words, reverse=True):
        if all(abs(eps - other) >= APART * max(words) for other in found):
            found[eps] = words[eps]
    return tuple(found.items())


@cache
def curve_chart(norm: str, several: bool = False, ticks: Ticks = (), largest: float | None = None) -> dict[str, Any]:
    """Accuracy against eps. Solid: certified; dashed: not broken; the band between is open; points: every attack ran.

    `ticks`: as `typed_ticks` gives them; `largest`: the largest eps, in place of which the compare page sets that of its models.
    Data sets `steps` (eps, certified, broken, model) and `points` (eps, robust, robust_low, robust_high, model).
    """
    colour = (
        alt.Color(
            "model:N",
            scale=alt.Scale(range=PALETTE),
            legend=alt.Legend(symbolOpacity=1, orient="top", columns=3, labelLimit=NAME, title=None),
        )
        if several
        else alt.value(BLUE)
    )
    share = alt.Axis(format=".0%", tickCount=5)
    room = alt.Scale(nice=False) if largest is None else alt.Scale(nice=False, domain=[0, WIDE * largest])
    x = alt.X("eps:Q", title=radius_axis(norm), scale=room, axis=alt.Axis(labelFlush=False, tickCount=TICKS, **_at(ticks)))
    steps = alt.Chart(alt.NamedData(name="steps")).encode(x=x)
    held: Any = {"interpolate": "step-after"}
    y = alt.Y("certified:Q", title="accuracy", axis=share, scale=alt.Scale(domain=[0, 1]))
    band = steps.mark_area(opacity=0.1 if several else 0.18, **held).encode(y=y, y2="broken:Q", color=colour)
    proved = steps.mark_line(strokeWidth=2, **held).encode(y=y, color=colour)
    standing = steps.mark_line(strokeWidth=1.6, strokeDash=[6, 3], **held).encode(y=alt.Y("broken:Q"), color=colour)
    points = alt.Chart(alt.NamedData(name="points")).encode(x=alt.X("eps:Q"), color=colour)
    bars = points.mark_rule().encode(y=alt.Y("robust_low:Q"), y2="robust_high:Q")
    told = [alt.Tooltip("model:N"), alt.Tooltip("text:N", title="eps"), alt.Tooltip("robust:Q", format=".1%")]
    marks = points.mark_point(filled=False, size=50, strokeWidth=1.6).encode(
        y=alt.Y("robust:Q"), tooltip=[*told, alt.Tooltip("certified:Q", format=".1%")]
    )
    return _spec(alt.layer(band, proved, standing, bars, marks))


def _at(ticks: Ticks) -> dict[str, Any]:
    """The settings of an axis that has these ticks."""
    if not ticks:
        return {}
    words = "".join(f"datum.value === {eps!r} ? {json.dumps(word)} : " for eps, word in ticks)
    return {"values": [eps for eps, _ in ticks], "labelExpr": f"{words}''"}


@cache
def tradeoff_chart() -> dict[str, Any]:
    """Two numbers of each model against each other, with the Pareto front. Data sets `models` (x, y, model) and `front` (x, y)."""
    front = alt.Chart(alt.NamedData(name="front")).mark_line(interpolate="step-before", color="#8c8c8c", strokeDash=[4, 3])
    around = alt.Scale(zero=False, padding=20)
    x, y = alt.X("x:Q", scale=around), alt.Y("y:Q", scale=around)
    models = alt.Chart(alt.NamedData(name="models"))
    told = [alt.Tooltip("model:N"), alt.Tooltip("x:Q"), alt.Tooltip("y:Q")]
    dots = models.mark_point(filled=True, size=70, color=BLUE).encode(x=x, y=y, tooltip=told)
    left = f"{LEFT_HALF} ? "  # each name on the side that has more room, and cut there only where it is longer than that
    room = f"max(scale('x', datum.x), width - scale('x', datum.x)) - {GAP}"
    side: dict[str, Any] = {
        "align": {"expr": f"{left}'left' : 'right'"},
        "dx": {"expr": f"{left}{GAP} : -{GAP}"},
        "limit": {"expr": room},
    }
    names = models.mark_text(fontSize=12, **side).encode(x=x, y=y, text="model:N")
    return _spec(alt.layer(front.encode(x="x:Q", y="y:Q"), dots, names))


def _spec(chart: Any) -> dict[str, Any]:
    found: dict[str, Any] = chart.properties(width="container", height=HEIGHT).to_dict(validate=False)
    found.pop("config", None)  # the page's theme gives it
    return found


def begin_still(spec: dict[str, Any], datasets: dict[str, Any], title: str, stem: Path) -> Callable[[], list[Path]]:
    """Have the chart drawn on white; a call of what it gives writes STEM.svg and STEM.png, and raises Unwritable. Cost: 0.1 s."""
    drawn = begin_stills({**spec, "width": WIDTH, "title": for_line(title), "datasets": datasets, "config": CONFIG})

    def write() -> list[Path]:
        return [
            write_changed(stem.with_name(f"{stem.name}.{kind}"), one) for kind, one in zip(("svg", "png"), drawn(), strict=True)
        ]

    return write
