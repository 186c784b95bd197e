"""Figure of scalar networks fitted to the square wave."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.figures import figure, save, small_print
from robustbench_rkhs.reports.natural_order import natural
from robustbench_rkhs.verdicts.axes import PALETTE


@dataclass(frozen=True)
class Fit:
    """A network's values on the grid."""

    group: str
    """Networks of one group share a colour."""
    panel: str
    """Networks of one panel share axes."""
    values: np.ndarray
    """One value per grid point."""
    slope: float
    """Largest slope between neighbours of the grid: a lower bound of its Lipschitz constant."""


def draw_fits(x: np.ndarray, wave: np.ndarray, fits: Sequence[Fit], stem: str | Path, note: str = "") -> list[Path]:
    """STEM.png, .pdf, .svg: the wave in grey and every fit over it, one thin line per seed. Raises UserError without fits."""
    if not fits:
        raise UserError("nothing to draw: expected at least one network")
    names = sorted({fit.panel for fit in fits}, key=natural)
    with figure(3.6 * len(names) + 0.6, 3.6) as (drawn, first):
        first.remove()
        panels = drawn.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for start, end, height in _pieces(x, wave):
                axes.plot([start, end], [height] * 2, color="#999999", lw=3, solid_capstyle="butt", zorder=1)
            for group, members in _groups([fit for fit in fits if fit.panel == name]).items():
                colour = PALETTE[list(_groups(fits)).index(group) % len(PALETTE)]
                slopes = sorted(fit.slope for fit in members)
                slope = f"{slopes[0]:.3g}" if len(slopes) == 1 else f"{slopes[0]:.3g} to {slopes[-1]:.3g}"
                for place, fit in enumerate(members):
                    text = f"{group}: largest slope {slope}" if place == 0 else None
                    axes.plot(x, fit.values, color=colour, lw=1.1 if len(members) == 1 else 0.8, label=text)
            axes.set_title(name, loc="left", fontsize=9)
            axes.set_xlabel("x")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=7)
        panels[0].set_ylabel("y (grey: the square wave)")
        small_print(drawn, [note] if note else [])
        return save(drawn, stem)


def _groups(fits: Sequence[Fit]) -> Mapping[str, list[Fit]]:
    found: dict[str, list[Fit]] = {}
    for fit in fits:
        found.setdefault(fit.group, []).append(fit)
    return found


def _pieces(x: np.ndarray, wave: np.ndarray) -> list[tuple[float, float, float]]:
    """The intervals on which the wave is constant."""
    jumps = np.flatnonzero(np.diff(wave)) + 1
    edges = [0, *jumps.tolist(), len(x)]
    return [(float(x[a]), float(x[min(b, len(x) - 1)]), float(wave[a])) for a, b in itertools.pairwise(edges)]
