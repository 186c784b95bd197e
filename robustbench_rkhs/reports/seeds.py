"""Accuracy versus eps over several seeds: the mean curve of each group, empirical and certified."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.curves import BANDS
from robustbench_rkhs.reports.figures import figure, same_domain, save, shortened, small_print, sources
from robustbench_rkhs.reports.spread import WORDS, Band, counted, spread
from robustbench_rkhs.verdicts import AccuracySteps, Evaluation, accuracy_steps
from robustbench_rkhs.verdicts.axes import CERTIFIED, EMPIRICAL, GREY, MARKERS, OPEN, PALETTE
from robustbench_rkhs.verdicts.plot import code, dress


def seed_curves(steps: Sequence[AccuracySteps], band: Band) -> pd.DataFrame:
    """A row per eps at which any share changes: the means certified and empirical, each with _low and _high over the evaluations.

    Between two rows the shares are those of the first one. `asked`: every evaluation ran its whole protocol there.
    """
    end = min(one.empirical.end for one in steps)
    changes = [side.eps for one in steps for side in (one.empirical, one.certified)]
    asked = [{row["eps"] for row in one.tested} for one in steps]
    grid = np.unique(np.concatenate([*changes, [end], [eps for some in asked for eps in some]]))
    grid = grid[grid <= end]
    table = pd.DataFrame({"eps": grid})
    for part in ("certified", "empirical"):
        found = np.array([getattr(one, part).at(grid) for one in steps])
        table[part], table[f"{part}_low"], table[f"{part}_high"] = spread(found, band)
    table["asked"] = [eps > 0 and all(eps in some for some in asked) for eps in grid]
    return table


def draw_seed_curves(
    groups: Mapping[str, Sequence[Evaluation]], stem: str | Path, band: Band = "range", note: str = ""
) -> list[Path]:
    """STEM.png, .pdf, .svg: the means over seeds, solid certified, dashed empirical, the open band between; one colour per group.

    Hollow markers: eps at which all attacks ran on every seed, with the spread over seeds as bars.
    Raises UserError for no evaluation, several data sets, norms or boxes, or more groups than colours.
    """
    every = [one for group in groups.values() for one in group]
    same_domain(every)
    if len(groups) > len(PALETTE):
        raise UserError(f"expected at most {len(PALETTE)} groups, which have a colour each, found {len(groups)}")
    steps = {name: [accuracy_steps(one) for one in group] for name, group in groups.items()}
    with figure(7.4, 4.2) as (drawn, axes):
        for place, own in enumerate(steps.values()):
            _mean(axes, seed_curves(own, band), place, len(own) > 1, len(groups) <= BANDS)
        dress(axes, every, title=len(every) > 1 or len(groups) > 1)
        who = [
            Line2D([], [], color=PALETTE[place], lw=1.6, marker=MARKERS[place], mfc="white", mew=1.4, ms=6,
                   label=counted(shortened(name), len(group)))
            for place, (name, group) in enumerate(groups.items())
        ]  # fmt: skip
        shown = code(all(one.full for own in steps.values() for one in own), GREY)
        shown = [one for one in shown if len(groups) <= BANDS or one.get_label() != "open"]
        several = any(len(group) > 1 for group in groups.values())
        seeds = [Line2D([], [], ls="", label=f"bars: {WORDS[band]}")] if several else []
        axes.legend(
            handles=[*who, *shown, *seeds], loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0, handlelength=2.4
        )
        small_print(drawn, [*filter(None, [note]), *sources(every)])
        return save(drawn, stem)


def _mean(axes: Axes, table: pd.DataFrame, place: int, several: bool, band: bool) -> None:
    """One group: its mean curves, and bars of the spread over seeds where all attacks ran."""
    colour, eps = PALETTE[place], table["eps"].to_numpy()
    look: dict[str, Any] = {"color": colour, "lw": 1.6, "drawstyle": "steps-post"}
    if band:
        axes.fill_between(eps, table["certified"], table["empirical"], step="post", color=colour, alpha=OPEN, lw=0, zorder=1)
    axes.plot(eps, table["certified"], ls=CERTIFIED, **look)
    axes.plot(eps, table["empirical"], ls=EMPIRICAL, **look)
    known = table[table["asked"]]
    for part, marker in (("empirical", MARKERS[place]), ("certified", "")):
        middle = known[part].to_numpy()
        bars = np.abs(np.stack([middle - known[f"{part}_low"].to_numpy(), known[f"{part}_high"].to_numpy() - middle]))
        hollow: dict[str, Any] = {"mfc": "white", "ms": 6, "mew": 1.4, "elinewidth": 1, "capsize": 2.5, "zorder": 4}
        axes.errorbar(known["eps"], middle, bars if several else None, fmt=marker or "none", color=colour, **hollow)
