"""The nearest adversarial images side by side: the change, its distance, and the new prediction."""

from math import floor, log10
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.figures import figure, save
from robustbench_rkhs.verdicts import Adversarials

ROWS = ("clean", "difference", "adversarial")
LEAST = 4
"""Columns there is room for, so that the title fits; those without an image stay empty."""


def nearest_first(stored: Adversarials, count: int) -> np.ndarray:
    """Places in the file of the `count` smallest distances; images that are wrong as they are stand aside."""
    attacked = np.flatnonzero(stored.method != "clean")
    return attacked[np.lexsort((stored.index[attacked], stored.distance[attacked]))][:count]


def draw_nearest(stored: Adversarials, clean: np.ndarray, places: np.ndarray, stem: str | Path) -> list[Path]:
    """STEM.png, .pdf, .svg: a column for each of these places of the file; clean image, difference, adversarial image.

    clean: their clean images. Each difference is stretched by the factor under it: grey ones are red where brighter and blue
    where darker, coloured ones lie around grey. Raises UserError where there are none or they are no images of 1 or 3 channels.
    """
    if not len(places):
        raise UserError("nothing to draw: no image of the file was found by an attack")
    images, about = stored.images[places], stored.about
    if images.shape != clean.shape or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"expected images of (1 or 3 channels, height, width) and their clean ones, found {images.shape[1:]}")
    delta = images.astype(np.float64) - clean.astype(np.float64)
    norm = {"linf": "l-infinity"}.get(about.norm, about.norm)
    columns = max(len(places), LEAST)
    with figure(1.05 * columns + 0.4, 4.8) as (drawn, _):
        drawn.clear()
        grid = drawn.subplots(3, columns, squeeze=False)
        for axes in grid[:, len(places) :].flat:
            axes.axis("off")
        for column, place in enumerate(places):
            top, middle, bottom = grid[:, column]
            _image(top, clean[column])
            factor = readable(0.5 / max(float(np.abs(delta[column]).max()), 1e-12))
            _difference(middle, factor * delta[column])
            middle.set_xlabel(f"× {factor:,.15g}", fontsize=8)
            _image(bottom, images[column])
            top.set_title(f"image {stored.index[place]}\nlabel {stored.label[place]}", fontsize=8)
            top.set_xlabel(f"answer {stored.predicted[place]}", fontsize=8)
            answer = int(stored.predicted_adversarial[place])
            depth = "" if stored.bits is None else f", {stored.bits[place]} bits" if stored.bits[place] else ", floats"
            said = f"answer {answer if answer >= 0 else 'not finite'}"
            bottom.set_xlabel(f"{said}\n{norm} {stored.distance[place]:.4g}{depth}", fontsize=8)
        for row, name in enumerate(ROWS):
            grid[row, 0].set_ylabel(name, fontsize=9)
        found = int((stored.method != "clean").sum())
        title = f"{about.model} on {about.data}: the {len(places)} nearest of {found} adversarial images, {norm}"
        key = "red brighter, blue darker" if images.shape[1] == 1 else "around grey"
        drawn.suptitle(f"{title}\ndifference: {key}, stretched by the factor under it", fontsize=9, x=0.01, ha="left")
        return save(drawn, stem)


def readable(factor: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above it, and at least 1."""
    power = 10.0 ** floor(log10(max(factor, 1.0)))
    return max(step * power for step in (1, 2, 5) if step * power <= max(factor, 1.0))


def _image(axes: Axes, image: np.ndarray) -> None:
    shown = np.clip(image.transpose(1, 2, 0), 0, 1)
    axes.imshow(shown[..., 0] if len(image) == 1 else shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(axes)


def _difference(axes: Axes, scaled: np.ndarray) -> None:
    if len(scaled) == 1:
        axes.imshow(scaled[0], cmap="RdBu_r", vmin=-0.5, vmax=0.5, interpolation="nearest")
    else:
        axes.imshow(np.clip(0.5 + scaled.transpose(1, 2, 0), 0, 1), interpolation="nearest")
    _bare(axes)


def _bare(axes: Axes) -> None:
    """No ticks and no grid, but a thin frame: white pixels end somewhere."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color="#bbbbbb", linewidth=0.6)
