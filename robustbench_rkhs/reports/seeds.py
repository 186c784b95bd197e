"""Accuracy versus eps over several seeds: the mean curve of each group, empirical and certified."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs.reports.figures import figure, same_domain, save
from robustbench_rkhs.reports.spread import WORDS, Band, counted, spread
from robustbench_rkhs.verdicts import Evaluation, curve
from robustbench_rkhs.verdicts.axes import MARKERS, PALETTE, domain, label, percent, radius_axis


def seed_curves(evaluations: Sequence[Evaluation], band: Band, largest: float) -> pd.DataFrame:
    """A row per eps up to `largest`: certified and robust, each with _low and _high over the evaluations, and `asked`.

    Robust accuracy is known where every evaluation knows it, NaN elsewhere; `asked`: every evaluation was run at that eps.
    """
    asked = [set(one.about.epsilons) for one in evaluations]
    grid = sorted({*np.linspace(0, largest, 61).tolist(), *set().union(*asked)})
    curves = [curve(one, grid).set_index("eps").loc[grid] for one in evaluations]
    table = pd.DataFrame({"eps": grid})
    for part in ("certified", "robust"):
        table[part], table[f"{part}_low"], table[f"{part}_high"] = spread(np.array([one[part].to_numpy() for one in curves]), band)
    table["asked"] = [eps == 0 or all(eps in one for one in asked) for eps in grid]
    return table


def draw_seed_curves(
    groups: Mapping[str, Sequence[Evaluation]], stem: str | Path, band: Band = "range", note: str = ""
) -> list[Path]:
    """STEM.png, .pdf, .svg: solid robust with markers at evaluated eps, dashed certified, one colour per group, bands over seeds.

    Raises UserError for no evaluation or several data sets, norms or boxes.
    """
    every = [one for group in groups.values() for one in group]
    same_domain(every)
    largest = 1.25 * max((eps for one in every for eps in one.about.epsilons), default=1.0)
    with figure(7.8, 3.9) as (drawn, axes):
        for place, (name, group) in enumerate(groups.items()):
            look: dict[str, Any] = {"color": PALETTE[place % len(PALETTE)]}
            table = seed_curves(group, band, largest)
            axes.plot(table["eps"], table["certified"], lw=1.4, ls=(0, (4, 2)), **look)
            known = table[table["asked"] & table["robust"].notna()]
            marker = MARKERS[place % len(MARKERS)]
            axes.plot(known["eps"], known["robust"], lw=1.4, marker=marker, ms=4.5, label=counted(name, len(group)), **look)
            if len(group) > 1:
                axes.fill_between(table["eps"], table["certified_low"], table["certified_high"], alpha=0.13, lw=0, **look)
                axes.fill_between(known["eps"], known["robust_low"], known["robust_high"], alpha=0.22, lw=0, **look)
        axes.plot([], [], color="#555555", lw=1.4, marker="o", ms=4.5, label="robust (known at markers)")
        axes.plot([], [], color="#555555", lw=1.4, ls=(0, (4, 2)), label="certified")
        axes.set_xlabel(radius_axis(every[0].about.norm))
        axes.set_ylabel("accuracy")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(-0.01 * largest, largest)
        percent(axes)
        counts = sorted({one.table["index"].nunique() for one in every})
        images = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        axes.set_title(f"{domain(every[0].about)}, {images} images", loc="left", fontsize=9)
        several = any(len(group) > 1 for group in groups.values())
        label(axes, list(groups), WORDS[band] if several else "one model each")
        drawn.supxlabel(note, fontsize=5.5, color="#666666")
        return save(drawn, stem)
