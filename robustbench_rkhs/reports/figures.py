"""Common functions of all figures: one style, and reproducible bytes."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.runtime.sinks import for_line, for_terminal
from robustbench_rkhs.verdicts import Record, digest, marks
from robustbench_rkhs.verdicts.axes import domain
from robustbench_rkhs.verdicts.remembered import remembered

STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "robustbench_rkhs",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}
LONGEST = 1000
"""Most characters of a text in a figure; longer ones would widen the figure."""
LABEL = 30
"""Most characters of a model's name in a legend."""
SMALL = 6.5
"""Points of the small print."""
SMALL_PRINT = "small-print"
"""The id of the small print in the file."""
COMMANDS = 6
"""Most commands in the small print of a figure."""
UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
"""Metadata left out of each format, so that the same table gives the same bytes."""


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure in our style, independent of the user's matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, drawn.subplots()


def save(drawn: Figure, stem: str | Path) -> list[Path]:
    """STEM.png, .pdf and .svg, each whole or absent. Raises UserError where they cannot be written."""
    paths = []
    for text in drawn.findobj(Text):
        whole = for_terminal(text.get_text())
        text.set_text(whole if text.get_gid() == SMALL_PRINT else whole[:LONGEST])
    lay_out(drawn)
    for kind, metadata in UNDATED.items():
        path = Path(f"{stem}.{kind}")

        def write(temporary: Path, kind: str = kind, metadata: dict[str, None] = metadata) -> None:
            drawn.savefig(temporary, format=kind, dpi=160, metadata=metadata, facecolor="white")

        write_whole(path, write)
        paths.append(path)
    return paths


def lay_out(drawn: Figure) -> None:
    """Fix the places of all axes, once for all formats."""
    if drawn.get_layout_engine() is not None:
        drawn.draw_without_rendering()
        with mpl.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
            drawn.set_layout_engine(None)  # "none" leaves a placeholder, for which savefig draws each format twice


def small_print(drawn: Figure, lines: Sequence[str]) -> None:
    """Where the numbers come from, in small grey lines under the figure, which grows by them; long ones are wrapped."""
    most = int(drawn.get_figwidth() * 72 / (0.54 * SMALL))
    wrapped = [part for line in lines for part in textwrap.wrap(for_line(line)[:LONGEST], most, subsequent_indent="   ")]
    if not wrapped:
        return
    width, height = drawn.get_size_inches()
    drawn.set_size_inches(width, height + len(wrapped) * 1.35 * SMALL / 72)
    text = drawn.supxlabel("\n".join(wrapped), x=0.01, ha="left", fontsize=SMALL, color="#777777", linespacing=1.35)
    text.set_gid(SMALL_PRINT)


def sources(evaluations: Sequence[Record]) -> list[str]:
    """The small print of evaluations: their commands; each table's digest, images, protocol and date, what is alike told once.

    Commands that differ in the model's name alone are told once, with NAME in its place.
    """
    told: dict[str, list[str]] = {}
    commands: dict[str, dict[str, None]] = {}
    several = [one.about.command for one in evaluations]
    named = list(zip(names(evaluations), evaluations, strict=True))
    for name, one in named:
        about = one.about
        ran = "+".join(about.protocol) or "no attacks"
        line = f"{one.table['index'].nunique():,} images, seed {about.seed}, attacks {ran}, {about.date}"
        told.setdefault(line, []).append(f"{name} {remembered(one, ('digest',), partial(digest, one.table))[:12]}")
        words = about.command.split(" ")
        general = " ".join("NAME" if word == about.model and several.count(about.command) == 1 else word for word in words)
        commands.setdefault(general, {})[about.command] = None
    typed = [general if len(some) > 1 else next(iter(some)) for general, some in commands.items() if general]
    more = [f"and {len(typed) - COMMANDS} more commands, which the tables hold"] if len(typed) > COMMANDS else []
    tables = [f"{'table' if len(some) == 1 else 'tables'} {', '.join(some)}: {line}" for line, some in told.items()]
    doubted = [f"doubtful: {name} ({', '.join(found)})" for name, one in named if (found := marks(one))]
    return [*typed[:COMMANDS], *more, *tables, *doubted]


def same_domain(evaluations: Sequence[Record]) -> None:
    """Raises UserError for evaluations that cannot be compared in one figure."""
    if not evaluations:
        raise UserError("nothing to draw: expected at least one evaluation")
    found = sorted({domain(evaluation.about) for evaluation in evaluations})
    if len(found) > 1:
        raise UserError(f"expected evaluations of one data set, norm and box, found {'; '.join(found)}")


def names(evaluations: Sequence[Record]) -> list[str]:
    """Distinct labels: each model's name, with the first digits of its key and a number where names repeat."""
    plain = [evaluation.about.model for evaluation in evaluations]
    full = [
        name if plain.count(name) == 1 else f"{name} ({(evaluation.about.key or evaluation.about.weights)[:6]})"
        for name, evaluation in zip(plain, evaluations, strict=True)
    ]
    return [f"{name} #{full[:place].count(name) + 1}" if full.count(name) > 1 else name for place, name in enumerate(full)]


def farthest_limit(rows: Sequence[Any], parts: Sequence[str]) -> float:
    """How far a 95% limit lies from its share, at most, over these rows of summaries; 0 where no share is known."""
    ends = [abs(row[f"{part}_{end}"] - row[part]) for row in rows for part in parts for end in ("low", "high")]
    return float(max((one for one in ends if one == one), default=0.0))


def legend_above(drawn: Figure, handles: Sequence[Artist], title: str, columns: int) -> None:
    """The title and the legend above all axes, for figures without room beside them."""
    words = [str(one.get_label()).replace("\n", " ") for one in handles]
    look: dict[str, Any] = {"loc": "outside upper left", "ncols": columns, "columnspacing": 1.4, "borderaxespad": 0.2}
    drawn.legend(handles, words, title=title, alignment="left", title_fontsize=10.5, **look)


def shortened(name: str) -> str:
    """A name that fits into a legend: the middle of a long one is left out."""
    line = for_line(name)
    return line if len(line) <= LABEL else f"{line[: LABEL // 2]}…{line[-LABEL // 2 + 1 :]}"
