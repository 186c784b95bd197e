"""Labels beside points, placed so that they overlap neither one another nor the points."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Affine2D, BboxBase, ScaledTranslation

from robustbench_rkhs.reports.figures import lay_out

SHRINK = 3.0
"""Points between a marker's centre and the line to its label."""
GAP = 7.5
"""Points between a marker's centre and its label."""
REACHES = (1.0, 1.8, 3.0, 4.5, 6.5, 9.0)
"""Multiples of the gap that are tried, nearest first."""
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Directions that are tried: right, left, above, below, then the corners."""
Box = tuple[float, float, float, float]
"""Left, low, right, high, in pixels. (Plain numbers: matplotlib's boxes take most of the time.)"""
ALIGNED = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Write each text beside its point, at the nearest place that is free; a thin line leads back from farther away.

    `others`: further points to stay clear of. Limits and layout of the axes must be final. A text for which no place is free takes
    the one that hides the least.
    """
    drawn = axes.get_figure(root=True)
    assert drawn is not None
    lay_out(drawn)  # final: labels move no axes
    renderer: Any = FigureCanvasAgg(drawn).get_renderer()  # type: ignore[no-untyped-call]
    inside = _corners(axes.get_window_extent())
    scale = drawn.dpi / 72
    pixels = [axes.transData.transform(point) for point in points]
    marks = [*pixels, *(axes.transData.transform(point) for point in others)]
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in marks]
    for (x, y), text, colour, at in zip(points, texts, colours, pixels, strict=True):
        trial = axes.text(0, 0, text, fontsize=9.5)
        size = trial.get_window_extent(renderer)
        trial.remove()
        places: list[tuple[Any, ...]] = []
        for reach, (right, up) in product(REACHES, SIDES):
            step = GAP * reach * (0.75 if right and up else 1.0)
            across, along = right * step, up * step
            left = at[0] + across * scale - {1: 0.0, 0: size.width / 2, -1: size.width}[right]
            low = at[1] + along * scale - {1: 0.0, 0: size.height / 2, -1: size.height}[up]
            box = left, low, left + size.width, low + size.height
            hidden = sum(_shared(box, other) for other in taken) + _outside(box, inside)
            places.append((hidden, len(places), across, along, (right, up), reach, box))
            if not hidden:
                break
        _, _, across, along, (right, up), reach, box = min(places)
        taken.append(box)
        if reach > 2:
            _lead(axes, (x, y), (across, along), colour)
        look: dict[str, Any] = {"ha": ALIGNED[right][0], "va": ALIGNED[up][1], "color": colour, "fontsize": 9.5}
        halo = [withStroke(linewidth=2.5, foreground="white")]
        axes.annotate(text, (x, y), (across, along), textcoords="offset points", zorder=6, path_effects=halo, **look)


def _lead(axes: Axes, point: tuple[float, float], step: tuple[float, float], colour: str) -> None:
    """A thin line from beside a point to its label, `step` points away. (Clipped arrows of matplotlib take half the drawing.)"""
    drawn = axes.get_figure(root=True)
    assert drawn is not None
    start = SHRINK / math.hypot(*step)
    shifted = ScaledTranslation(*point, axes.transData)  # type: ignore[arg-type]
    moved = Affine2D().scale(1 / 72) + drawn.dpi_scale_trans + shifted
    ends = [start * step[0], step[0]], [start * step[1], step[1]]
    axes.add_line(Line2D(*ends, color=colour, lw=0.6, transform=moved, zorder=5.5))


def _corners(box: BboxBase) -> Box:
    return float(box.x0), float(box.y0), float(box.x1), float(box.y1)


def _shared(one: Box, other: Box) -> float:
    """The area that two boxes share, in square pixels."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, frame: Box) -> float:
    """The area of a box outside a frame, in square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _shared(box, frame)
