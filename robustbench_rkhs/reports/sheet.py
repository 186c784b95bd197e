"""A sheet of images: many small pictures side by side."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.figures import STYLE, save


def sheet(
    images: np.ndarray, rows: int, columns: int, title: str, stem: str | Path, labels: Sequence[str] | None = None
) -> list[Path]:
    """The first rows x columns images as STEM.png, .pdf and .svg, row by row, with a label under each where given.

    Images are (count, channel, height, width) or (count, height, width) in [0, 1], with 1 or 3 channels; other values are
    clipped. Places without an image stay empty. Raises UserError for other shapes, for NaN, or where nothing can be written.
    """
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise UserError(f"a sheet needs images of (count, 1 or 3 channels, height, width), found shape {images.shape}")
    if rows < 1 or columns < 1:
        raise UserError(f"a sheet needs at least one row and column, found {rows} and {columns}")
    if not np.isfinite(images).all():
        raise UserError("a sheet needs finite pixels, found NaN or infinity")
    shown = np.clip(images[: rows * columns], 0, 1).transpose(0, 2, 3, 1)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        drawn = Figure(figsize=(0.7 * columns + 0.2, (0.7 + 0.2 * bool(labels)) * rows + 0.45), layout="constrained")
        drawn.suptitle(title)
        for place, axes in enumerate(drawn.subplots(rows, columns, squeeze=False).flat):
            axes.axis("off")
            if place >= len(shown):
                continue
            picture = shown[place]
            axes.imshow(
                picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
            if labels is not None and place < len(labels):
                axes.set_title(labels[place], fontsize=7, pad=2)
        return save(drawn, stem)
