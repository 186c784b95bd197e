"""Learning curves: loss and validation metrics by epoch, with the seeds of one recipe as one curve."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.figures import figure, save, small_print
from robustbench_rkhs.reports.spread import WORDS, Band, counted, spread
from robustbench_rkhs.verdicts.axes import PALETTE, percent

PANELS = {
    "loss": "training loss",
    "validation_clean": "clean accuracy, validation",
    "validation_robust": "robust accuracy, validation",
    "validation_auroc50": "auROC50, validation",
    "validation_mse": "squared error, validation",
}
DASHES = ["-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5))]
"""Line styles, for more groups than colours."""
Records = Sequence[Mapping[str, Any]]


def draw_learning(groups: Mapping[str, Sequence[Records]], stem: str | Path, band: Band = "range", note: str = "") -> list[Path]:
    """STEM.png, .pdf, .svg: one panel per metric that any run has; one colour per group, with mean and band over seeds.

    A group is drawn up to the last epoch that all its runs have. Raises UserError where there is nothing to draw.
    """
    if not groups:
        raise UserError("nothing to draw: expected at least one run")
    keys = [key for key in PANELS if any(key in record for runs in groups.values() for records in runs for record in records)]
    with figure(3.4 * len(keys) + 2.2, 3.3) as (drawn, first):
        first.remove()
        panels = drawn.subplots(1, len(keys), squeeze=False)[0]
        for axes, key in zip(panels, keys, strict=True):
            _panel(axes, key, groups, band)
        some = any(len(runs) > 1 for runs in groups.values())
        panels[-1].plot([], [], " ", label=f"bands: {WORDS[band]}" if some else "one run each")
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
        small_print(drawn, [note] if note else [])
        return save(drawn, stem)


def common(runs: Sequence[Records], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (counted from 1) at which every run has the number, and its values (runs, epochs)."""
    own = [{record["epoch"]: float(record[key]) for record in records if record.get(key) is not None} for records in runs]
    epochs = sorted(set.intersection(*(set(one) for one in own)))
    return np.array(epochs) + 1, np.array([[one[epoch] for epoch in epochs] for one in own])


def _panel(axes: Axes, key: str, groups: Mapping[str, Sequence[Records]], band: Band) -> None:
    for place, (name, runs) in enumerate(groups.items()):
        look: dict[str, Any] = {"color": PALETTE[place % len(PALETTE)], "ls": DASHES[place // len(PALETTE) % len(DASHES)]}
        epochs, values = common(runs, key)
        mean, low, high = spread(values, band)
        if len(runs) > 1 and len(epochs):
            axes.fill_between(epochs, low, high, color=look["color"], alpha=0.18, lw=0)
        axes.plot(epochs, mean, lw=1.5, marker="o" if len(epochs) == 1 else None, ms=4, label=counted(name, len(runs)), **look)
    axes.set_xlabel("epoch")
    axes.set_title(PANELS[key], loc="left", fontsize=9)
    if key in ("validation_clean", "validation_robust"):
        percent(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
