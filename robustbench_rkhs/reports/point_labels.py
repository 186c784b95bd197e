"""Labels beside points, placed so that they overlap neither one another nor the points."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.transforms import BboxBase

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
    drawn.draw_without_rendering()
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
        line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 3} if reach > 2 else None
        look: dict[str, Any] = {"ha": ALIGNED[right][0], "va": ALIGNED[up][1], "color": colour, "fontsize": 9.5, "arrowprops": line}
        halo = [withStroke(linewidth=2.5, foreground="white")]
        axes.annotate(text, (x, y), (across, along), textcoords="offset points", zorder=6, path_effects=halo, **look)


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
