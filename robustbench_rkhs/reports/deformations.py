"""Figure of deformed images: the original, each kind of deformation, and its displaced lattice."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.figures import figure, save
from robustbench_rkhs.verdicts.axes import PALETTE


def draw_deformations(
    images: np.ndarray, deformed: Sequence[tuple[str, np.ndarray, np.ndarray]], stem: str | Path, title: str = ""
) -> list[Path]:
    """STEM.png, .pdf, .svg: one row per image; the original, then each of `deformed` and its displaced pixel lattice.

    images: (count, channel, height, width) in [0, 1]. deformed: name, images of the same shape, fields (count, 2, height, width)
    in pixels, down then right; lines show where the rows and columns of the result lie in the original. Raises UserError for other
    shapes.
    """
    if images.ndim != 4 or not len(images):
        raise UserError(f"expected images (count, channel, height, width), found shape {images.shape}")
    for name, moved, fields in deformed:
        if moved.shape != images.shape or fields.shape != (len(images), 2, *images.shape[2:]):
            raise UserError(f"{name}: expected images {images.shape} and a field each, found {moved.shape} and {fields.shape}")
    columns = 1 + 2 * len(deformed)
    with figure(1.15 * columns, 1.2 * len(images) + 0.5) as (drawn, _):
        drawn.clear()
        grid = drawn.subplots(len(images), columns, squeeze=False)
        for row, axes in enumerate(grid):
            _image(axes[0], images[row])
            for place, (_, moved, fields) in enumerate(deformed):
                _image(axes[1 + 2 * place], moved[row])
                _lines(axes[2 + 2 * place], images[row], fields[row])
        heads = ["original", *(head for name, _, _ in deformed for head in (name, f"{name}: lines"))]
        for axes, head in zip(grid[0], heads, strict=True):
            axes.set_title(head, fontsize=8)
        if title:
            drawn.suptitle(title, fontsize=9, x=0.01, ha="left")
        return save(drawn, stem)


def _image(axes: Axes, image: np.ndarray) -> None:
    grey = image.shape[0] != 3
    axes.imshow(image[0] if grey else image.transpose(1, 2, 0), cmap="gray_r" if grey else None, vmin=0, vmax=1)
    axes.set_axis_off()


def _lines(axes: Axes, image: np.ndarray, field: np.ndarray) -> None:
    """The lattice u + tau(u) over the faded original."""
    height, width = field.shape[1:]
    grey = image.shape[0] != 3
    axes.imshow(image[0] if grey else image.transpose(1, 2, 0), cmap="gray_r" if grey else None, vmin=0, vmax=1, alpha=0.3)
    rows, columns = np.mgrid[:height, :width]
    down, right = rows + field[0], columns + field[1]
    step = max(1, min(height, width) // 14)
    for place in range(0, height, step):
        axes.plot(right[place], down[place], color=PALETTE[0], lw=0.7)
    for place in range(0, width, step):
        axes.plot(right[:, place], down[:, place], color=PALETTE[1], lw=0.7)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
