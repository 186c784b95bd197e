"""Trade-off plots and norm figures as they are drawn: labels apart, axes zoomed, the Pareto front, dots and their numbers."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from test_report import synthetic

from robustbench_rkhs.reports import rkhs_norm, tradeoff
from robustbench_rkhs.reports.pareto import pareto, staircase
from robustbench_rkhs.verdicts import summary


@pytest.fixture
def kept(monkeypatch):
    """The figures in place of their files."""
    figures = []
    for room in (tradeoff, rkhs_norm):
        monkeypatch.setattr(room, "save", lambda drawn, stem: figures.append(drawn) or [])
    return figures


def test_labels_lie_apart_and_axes_hug_the_points(kept):
    models = [synthetic(f"net-width-{k}", 300, 0.9 + 0.004 * k, 0.9 - 0.03 * k, seed=k) for k in range(12)]
    tradeoff.draw_tradeoff(models, 0.25, "x")
    (drawn,) = kept
    (axes,) = drawn.axes
    drawn.draw_without_rendering()
    labels = [one for one in axes.texts if isinstance(one, Annotation)]
    boxes = [one.get_bbox_patch() or one for one in labels]
    boxes = [super(Annotation, one).get_window_extent() for one in boxes]  # the text, without its line
    assert {one.get_text() for one in labels} == {one.about.model for one in models}
    assert not [1 for a, b in combinations(boxes, 2) if a.shrunk(0.98, 0.9).overlaps(b.shrunk(0.98, 0.9))]
    rows = [summary(one, [0.25]).iloc[0] for one in models]
    x = [row["clean"] for row in rows]
    y = [row[part] for row in rows for part in ("robust", "certified")]
    for values, (low, high) in ((x, axes.get_xlim()), (y, axes.get_ylim())):
        assert low < min(values) and max(values) < high and high - low < 1.3 * max(max(values) - min(values), 0.02)


def test_a_figure_is_laid_out_once_and_each_format_is_drawn_once(tmp_path, monkeypatch):
    drawn, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(self) or draw(self, renderer))
    tradeoff.draw_tradeoff([synthetic(f"m{k}", 20, seed=k) for k in range(2)], 0.25, tmp_path / "x")
    assert len(drawn) == 4 and {path.suffix for path in tmp_path.iterdir()} == {".png", ".pdf", ".svg"}


def test_the_front_is_what_nothing_dominates():
    points = [(float(a), float(b)) for a, b in np.random.default_rng(0).random((40, 2))]
    front = [point for point, best in zip(points, pareto(points), strict=True) if best]
    assert front == [a for a in points if not any(b[0] >= a[0] and b[1] >= a[1] and b != a for b in points)]
    xs, ys = staircase(points, 0.0, 0.0)
    assert sorted(front) == [(x, y) for x, y in zip(xs, ys, strict=True) if (x, y) in front]
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)
    assert staircase([], 0.1, 0.2) == ([0.1], [0.2])


def test_norms_are_dots_at_their_values_hollow_where_measured(kept):
    bounds = [
        {"bound": "gradient", "side": "lower", "class": 0.5, "pair": 0.8, "logits": 0.6},
        {"bound": "proven Lipschitz bound", "side": "upper", "class": 0.9, "pair": 1.2, "logits": 1.0},
        {"bound": "reshaped product", "side": "not a bound of the operator", "class": None, "pair": None, "logits": 0.4},
    ]
    about = {"model": "m", "data": "digits", "samples": 5, "command": "rkhs-norms", "date": "2026-01-01", "seed": 0}
    about |= {"weights": "a" * 64, "test_digest": "b" * 64, "torch": "2"}
    rkhs_norm.draw_norms({"bounds": bounds, "about": about}, "x")
    (axes,) = kept[0].axes
    dots = [(float(one.get_xdata()[0]), round(float(one.get_ydata()[0])), one) for one in axes.lines]
    assert not axes.patches and axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0
    assert sorted(dot[:2] for dot in dots) == sorted(
        (row[key], place) for place, row in enumerate(bounds) for key in ("class", "pair", "logits") if row[key]
    )
    for _, place, one in dots:
        assert (one.get_markerfacecolor() == "white") == (place == 0) and (one.get_marker() == "x") == (place == 2)
