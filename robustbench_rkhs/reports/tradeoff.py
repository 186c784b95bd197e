"""Trade-off plot: clean versus robust and certified accuracy."""

from collections.abc import Sequence
from pathlib import Path

from robustbench_rkhs.reports.figures import figure, names, same_domain, save
from robustbench_rkhs.verdicts import Evaluation, summary
from robustbench_rkhs.verdicts.axes import MARKERS, PALETTE, domain, label, percent


def draw_tradeoff(evaluations: Sequence[Evaluation], eps: float, stem: str | Path) -> list[Path]:
    """STEM.png, .pdf, .svg: clean accuracy (x) versus robust (filled) and certified (hollow) accuracy at eps, 95% limits as bars.

    A vertical line joins the two points of a model; if images are untested, the filled one is absent.
    Raises UserError for no evaluation, several data sets, norms or boxes, a negative eps, or no space.
    """
    same_domain(evaluations)
    with figure(6.6, 4.0) as (drawn, axes):
        for place, (evaluation, name) in enumerate(zip(evaluations, names(evaluations), strict=True)):
            row = summary(evaluation, [eps]).iloc[0]
            colour, marker = PALETTE[place % len(PALETTE)], MARKERS[(place // len(PALETTE) + place) % len(MARKERS)]
            across = [[row["clean"] - row["clean_low"]], [row["clean_high"] - row["clean"]]]
            axes.plot([row["clean"]] * 2, [row["certified"], row["robust"]], color=colour, lw=0.8, ls=":")
            for part, fill in (("certified", "white"), ("robust", colour)):
                upright = [[row[part] - row[f"{part}_low"]], [row[f"{part}_high"] - row[part]]]
                axes.errorbar(
                    row["clean"], row[part], xerr=across, yerr=upright, fmt=marker, ms=7, color=colour, mfc=fill, elinewidth=0.9
                )
            withheld = "" if row["robust"] == row["robust"] else "\n(robust withheld: untested)"
            axes.plot([], [], marker, color=colour, ms=7, label=f"{name}{withheld}")
        axes.plot([], [], "o", color="#555555", ms=7, label="filled: robust")
        axes.plot([], [], "o", color="#555555", mfc="white", ms=7, label="hollow: certified")
        about = evaluations[0].about
        axes.set_xlabel("clean accuracy")
        axes.set_ylabel(f"accuracy at eps {eps:.4g}")
        axes.set_title(f"{domain(about)}, eps {eps:.4g} (pixels in [0, 1])", loc="left", fontsize=9)
        percent(axes, "x")
        percent(axes, "y")
        axes.set_ylim(-0.03, 1.03)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.02), min(high, 1.02))
        label(axes, names(evaluations), "bars: 95% limits")
        return save(drawn, stem)
