"""The charts, as Vega-Lite with named data: the browser draws them, and vl-convert makes the same figure as svg and png."""

from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.site.pages import write_changed
from robustbench_rkhs.verdicts.axes import PALETTE, radius_axis

BLUE = PALETTE[0]
WIDTH, HEIGHT = 560, 320
SCALE = 2.0
"""Pixels of the png per unit."""
CONFIG = {"background": "white", "font": "DejaVu Sans", "view": {"stroke": "transparent"}}


@cache
def curve_chart(norm: str, several: bool = False) -> dict[str, Any]:
    """Accuracy against eps. Solid: certified; dashed: not broken; the band between is open; points: every attack ran.

    Data sets `steps` (eps, certified, broken, model) and `points` (eps, robust, robust_low, robust_high, model).
    """
    colour = (
        alt.Color(
            "model:N", scale=alt.Scale(range=PALETTE), legend=alt.Legend(symbolOpacity=1, orient="top", columns=3, title=None)
        )
        if several
        else alt.value(BLUE)
    )
    share = alt.Axis(format=".0%")
    x = alt.X("eps:Q", title=radius_axis(norm), scale=alt.Scale(nice=False))
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


@cache
def tradeoff_chart() -> dict[str, Any]:
    """Two numbers of each model against each other, with the Pareto front. Data sets `models` (x, y, model) and `front` (x, y)."""
    front = alt.Chart(alt.NamedData(name="front")).mark_line(interpolate="step-before", color="#8c8c8c", strokeDash=[4, 3])
    around = alt.Scale(zero=False, padding=20)
    x, y = alt.X("x:Q", scale=around), alt.Y("y:Q", scale=around)
    models = alt.Chart(alt.NamedData(name="models"))
    told = [alt.Tooltip("model:N"), alt.Tooltip("x:Q"), alt.Tooltip("y:Q")]
    dots = models.mark_point(filled=True, size=70, color=BLUE).encode(x=x, y=y, tooltip=told)
    names = models.mark_text(align="left", dx=8, fontSize=12).encode(x=x, y=y, text="model:N")
    return _spec(alt.layer(front.encode(x="x:Q", y="y:Q"), dots, names))


def _spec(chart: Any) -> dict[str, Any]:
    found: dict[str, Any] = chart.properties(width="container", height=HEIGHT).to_dict(validate=False)
    found.pop("config", None)  # the page's theme gives it
    return found


def still(spec: dict[str, Any], datasets: dict[str, Any], title: str, stem: Path) -> list[Path]:
    """The chart as STEM.svg and STEM.png on white. Raises Unwritable. Cost: 0.1 s."""
    whole = {**spec, "width": WIDTH, "title": for_line(title), "datasets": datasets, "config": CONFIG}
    svg = vl_convert.vegalite_to_svg(whole)
    png = vl_convert.svg_to_png(svg, scale=SCALE)
    written = []
    for kind, content in (("svg", svg.encode()), ("png", png)):
        path = stem.with_name(f"{stem.name}.{kind}")
        write_changed(path, content)
        written.append(path)
    return written
