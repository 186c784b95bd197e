"""The summary as csv, Markdown, LaTeX, and on the terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from csv import writer as csv_writer
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.figures import names
from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.runtime.sinks import for_csv, for_latex, for_markdown, for_markdown_code
from robustbench_rkhs.verdicts import About, Record, by_attack, by_certificate, doubts, images, marks, no_function, summary
from robustbench_rkhs.verdicts.axes import domain

WITHHELD = "withheld"
"""Printed instead of robust accuracy while images are untested, and of every share of a model whose answers depend on the batch."""
INTERVAL = f"{WITHHELD}: images are untested; it lies between the shares certified and not known to be broken"
"""Its explanation."""
HEAD = ["model", "data", "norm", "box", "eps", "images", "clean [95%]", "robust [95%]", "certified [95%]", "open"]


DAGGER = "†"
"""Beside the name of a model about which something is doubtful, which is then said under the table."""


class Code(str):
    """A cell that is shown as it would be typed."""


def write_tables(evaluations: Sequence[Record], stem: str | Path) -> list[Path]:
    """STEM.csv (every column of the summary), STEM.md and STEM.tex (booktabs; percent with 95% limits).

    Raises UserError for no evaluation, or where they cannot be written.
    """
    if not evaluations:
        raise UserError("nothing to tabulate: expected at least one evaluation")
    frames = []
    for evaluation, name in zip(evaluations, names(evaluations), strict=True):
        frame = summary(evaluation)
        about = [name, *(evaluation.about.data, evaluation.about.norm, evaluation.about.box)]
        for place, (column, value) in enumerate(zip(HEAD, about, strict=False)):
            frame.insert(place, column, value)
        frame.insert(len(about) + 1, "eps_text", [evaluation.about.words(eps) for eps in frame["eps"]])
        frame["marks"] = "; ".join(doubts(evaluation))
        frames.append(frame)
    whole = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    named = list(zip(names(evaluations), evaluations, strict=True))
    said = [f"{DAGGER} {name}: doubtful: {line}" for name, one in named for line in doubts(one)]
    marked = {name: name + (DAGGER if doubts(one) else "") for name, one in named}
    rows = [
        [marked[row["model"]], *(str(row[key]) for key in HEAD[1:4]), row["eps_text"], str(row["images"]), *_shares(row)]
        for row in records(whole)
    ]
    note = f"{INTERVAL}. open: neither proved nor broken. Limits: Clopper-Pearson 95%."
    note += "".join(_sampled(evaluation.about) for evaluation in evaluations)
    for evaluation, name in zip(evaluations, names(evaluations), strict=True):
        note += f"\n{for_markdown(f'{name}: {left}.')}" if (left := outside(evaluation)) else ""
    texts = {
        "csv": csv(whole),
        "md": "\n".join([markdown(HEAD, rows), note, *(["", *bullets(said)] if said else []), ""]),
        "tex": latex(HEAD, rows).replace(DAGGER, r"$^\dagger$") + "".join(_printed(line) for line in said),
    }
    return [write_bytes(Path(f"{stem}.{kind}"), text) for kind, text in texts.items()]


def console(evaluation: Record) -> Table:
    """The summary for a terminal: shares in percent with 95% limits, counts below."""
    frame = summary(evaluation)
    images = evaluation.table["index"].nunique()
    table = Table(title=f"{evaluation.about.model}: {domain(evaluation.about)}, {images} images", title_justify="left")
    for column in ("eps", "clean", "robust", "certified", "open"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in records(frame):
        standing = row["count_certified"] + row["count_survived"]
        undecided = row["count_survived"] + row["count_untested"]
        counts = [row["images"] - row["count_wrong"], standing, row["count_certified"], undecided]
        if no_function(evaluation):
            table.add_row(evaluation.about.words(row["eps"]), *[WITHHELD] * 4)
            continue
        cells = _shares(row)
        shown = [f"{share}\n{count}" for share, count in zip(cells, counts, strict=True)]
        if row["count_untested"]:
            shown[1] = interval(row)
            shown[3] += f", {row['count_untested']} untested"
        if row["count_inferred"]:
            shown[1] += f", {row['count_inferred']} inferred"
        if row["count_certified"] and row["eps"] > 0:
            shown[2] += f", {row['count_audited']} audited"
        table.add_row(evaluation.about.words(row["eps"]), *shown)
    if marks(evaluation):
        table.title = f"{table.title}, DOUBTFUL: {', '.join(marks(evaluation))}"
    table.caption = (
        "percent with 95% limits, images below; open: neither proved nor broken;\n"
        "audited: certified, and attacked all the same; inferred: withstood every attack, but some of\n"
        "them at a larger budget, or without one (minimal-norm attacks)"
    )
    if why := no_function(evaluation):
        table.caption = f"withheld, as the answer to an image is no function of that image: {why}"
        return table
    if frame["count_untested"].any():
        table.caption += f"; {INTERVAL}"
    return table


def console_attacks(evaluation: Record) -> Table:
    """Table for a terminal of each attack of the protocol: images, broken, accuracy under it alone, passes, masking."""
    table = Table(title=f"{evaluation.about.model}: attacks, each on the images left to it", title_justify="left")
    for column in ("attack", "eps", "images", "broken", "not broken", "missed", "passes"):
        table.add_column(column, justify="left" if column == "attack" else "right", no_wrap=column != "attack")
    for row in records(by_attack(evaluation)):
        if _idle_attack(row, evaluation.about):
            continue
        marks = f"{row['missed']} ({row['overstated']:.1%})" + (" MASKED" if row["masked"] else "")
        alone = f"{row['alone']:.1%}" if row["attacked"] else "-"
        passes = f"{row['forwards']:,} + {row['backwards']:,}"
        table.add_row(
            row["attack"],
            evaluation.about.words(row["eps"]),
            str(row["attacked"]),
            str(row["broken"]),
            alone,
            marks if row["attacked"] else "-",
            passes,
        )
    table.caption = "images: attacked by it; missed: those that only other attacks broke; passes: forward + backward,"
    table.caption += " a library's shared evenly over a block"
    table.caption += f"\n{said}" if (said := outside(evaluation)) else ""
    return table


def not_needed(evaluation: Record) -> str:
    """The certificates and attacks that no image was left to, which the tables leave out; empty where all had one."""
    about, idle = evaluation.about, dict[str, list[str]]()
    rows = [(row["certificate"], row["eps"], _idle_certificate(row)) for row in records(by_certificate(evaluation))]
    rows += [(row["attack"], row["eps"], _idle_attack(row, about)) for row in records(by_attack(evaluation))]
    for method, eps, none in rows:
        if none:
            idle.setdefault(method, []).append(about.words(eps))
    whole = len(set(about.epsilons))
    said = ", ".join(name + ("" if len(at) == whole else f" at {' and '.join(at)}") for name, at in idle.items())
    why = "not needed, as no image was left" if about.complete else "not run on any image"
    return f"{why}: {said}" if said else ""


def _idle_attack(row: dict[str, Any], about: About) -> bool:
    """Whether an attack spent nothing at an eps, and did not fail."""
    failed = any(row["attack"] in line for line in about.failed)
    return not (failed or row["attacked"] or row["forwards"] or row["backwards"])


def _idle_certificate(row: dict[str, Any]) -> bool:
    """Whether a certificate had no image."""
    return not any(row[part] for part in ("ran", "unknown", "timeout", "refused", "error"))


def outside(evaluation: Record) -> str:
    """The attacks that returned images outside the ball or box, with counts; empty where none did."""
    found = evaluation.about.outside
    counts = ", ".join(f"{method} {count}" for method, count in sorted(found.items()) if count)
    return f"images returned outside box or ball by more than 1e-6: {counts}; counted after projection" if counts else ""


def console_certificates(evaluation: Record) -> Table:
    """Table for a terminal of each certificate: images, certified at eps, largest radius among all, reasons for no proof."""
    table = Table(title=f"{evaluation.about.model}: certificates, each on the images left open to it", title_justify="left")
    for column in ("certificate", "eps", "images", "certified", "largest", "nothing proved", "seconds", "arithmetic"):
        words = column in ("arithmetic", "nothing proved")  # these are folded where room is short, a number is never cut
        left = column in ("certificate", "arithmetic")
        table.add_column(column, justify="left" if left else "right", no_wrap=not words, overflow="fold")
    for row in records(by_certificate(evaluation)):
        if _idle_certificate(row):
            continue
        nothing = ", ".join(f"{row[reason]} {reason}" for reason in ("unknown", "timeout", "refused", "error") if row[reason])
        nothing = nothing or ("-" if row["certified"] or not row["ran"] else "radii below eps")
        counts = [str(row[column]) for column in ("ran", "certified", "won")]
        how = row["arithmetic"] or "-"
        table.add_row(
            row["certificate"],
            evaluation.about.words(row["eps"]),
            *counts,
            nothing,
            f"{row['seconds']:.1f}",
            how,
        )
    table.caption = "largest: images whose largest proved radius, at eps or above, is that of this certificate\n"
    table.caption += "arithmetic: real numbers, or with the rounding of the evaluated float32 network taken off"
    return table


def write_images(evaluation: Record, path: str | Path) -> Path:
    """One csv row per image: its certified radius, the certificate that proved it, and the radius at which it was broken."""
    return write_bytes(Path(path), csv(images(evaluation)))


def _printed(line: str) -> str:
    """A note under a LaTeX table."""
    return rf"\par\smallskip{{\footnotesize {for_latex(line).replace(DAGGER, '$^' + chr(92) + 'dagger$')}\par}}" + "\n"


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows by column name, with the type of each value kept (a Series would turn counts into floats)."""
    columns = [frame[name].tolist() for name in frame]
    return [dict(zip(map(str, frame), row, strict=True)) for row in zip(*columns, strict=True)]


def limits(row: dict[str, Any], part: str) -> str:
    """A share in percent with its limits, or `withheld`."""
    if row[part] != row[part]:
        return WITHHELD
    return f"{100 * row[part]:.1f}% [{100 * row[f'{part}_low']:.1f}, {100 * row[f'{part}_high']:.1f}]"


def interval(row: dict[str, Any]) -> str:
    """The range of robust accuracy on these images, from certified to not known to be broken, in percent."""
    if row["certified"] != row["certified"]:
        return WITHHELD
    return f"{WITHHELD}: {100 * row['certified']:.1f} to {100 * row['not_broken']:.1f}%"


def _shares(row: dict[str, Any]) -> list[str]:
    robust = interval(row) if row["count_untested"] else limits(row, "robust")
    open_ = f"{100 * row['open']:.1f}%" if row["open"] == row["open"] else WITHHELD
    return [limits(row, "clean"), robust, limits(row, "certified"), open_]


def _sampled(about: About) -> str:
    """A sentence on the sampled check of inferred survivals, if there was one."""
    pairs, fell = about.rechecked.pairs, about.rechecked.fell
    return (
        f"\n{for_markdown(about.model)}: of {pairs} inferred survivals attacked at their own eps, {fell} broken." if pairs else ""
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of plain text; markup in cells is escaped."""
    cells = [[for_markdown_code(cell) if isinstance(cell, Code) else for_markdown(cell) for cell in row] for row in [head, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]]) + "\n"


def latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A booktabs table; needs \\usepackage{booktabs}."""
    lines = [" & ".join(for_latex(cell) for cell in row) + r" \\" for row in [head, *rows]]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([f"\\begin{{tabular}}{{{'l' * len(head)}}}", *body, r"\end{tabular}", ""])


def bullets(lines: Sequence[str]) -> list[str]:
    """Lines of Markdown, one bullet each."""
    return [f"- {for_markdown(line)}" for line in lines]


def csv(frame: pd.DataFrame) -> str:
    """A table as csv: heads and cells of text are plain text to a spreadsheet, too."""
    safe = frame.rename(columns=for_csv)
    for place, kind in enumerate(safe.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            safe.isetitem(place, safe.iloc[:, place].map(for_csv).to_numpy())
    return safe.to_csv(index=False, lineterminator="\n")


def csv_of(heads: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as csv, as `csv` writes a table, ten times as quickly. What a row does not have, or is None, is empty; none is NaN."""
    escaped: Callable[[Any], Any] = lru_cache(8192, typed=True)(for_csv)  # most texts are repeated; 1 and 1.0 are two
    text = StringIO()
    writer = csv_writer(text, lineterminator="\n")
    writer.writerow([for_csv(head) for head in heads])
    writer.writerows([[escaped(row.get(head)) for head in heads] for row in rows])
    return text.getvalue()


def write_bytes(path: Path, text: str) -> Path:
    """UTF-8 with plain line ends on any machine, whole or absent. Raises UserError where it cannot be written."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode()))
    return path
