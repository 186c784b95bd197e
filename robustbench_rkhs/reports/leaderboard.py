"""The leaderboard: models ranked by robust accuracy, then certified accuracy; models that are not ranked follow."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs.reports.entries import ASIDE, Entry, board
from robustbench_rkhs.reports.tables import Code, bullets, csv, limits, markdown, write_bytes
from robustbench_rkhs.runtime.sinks import for_markdown
from robustbench_rkhs.verdicts import Evaluation, holm, mcnemar, robust_images

ALPHA = 0.05
HEAD = ["rank", "model", "clean", "robust [95%]", "certified [95%]", "open", "images", "attacks", "marks"]
HEAD += ["date", "device", "weights", "data digest", "seed", "command"]
READ = """Ranked by robust accuracy, then by certified accuracy. *robust*: the share of images that are certified or withstood
every attack named; it bounds the true robust accuracy from above, *certified* bounds it from below, and *open* is what lies
between. Limits are Clopper-Pearson 95%. Adversarial images found in any evaluation of the same function count.

How to read a rank: it orders estimates, not models. The lines under a table say which neighbours differ significantly (exact
McNemar test on the images they share, Holm-corrected over all pairs of the table, 5%). A difference that is not significant
does not show that two models are equally robust.

A model with a breach (a certificate that an attack contradicts) is refused, one with untested images is incomplete, and one whose
table is from before tables carried the digest of their content is unsealed; none of these is ranked. *masked*: the attack
failed on more than 5% of the images it ran on that others broke. *doubtful*: the diagnoses named tripped on this function, in this
evaluation or another: its survivors may only be hard to attack; lines under the table say why.
*undiagnosed*: no diagnosis was run on it. *also submitted as*: other names of the same function, which is one entry."""


def write_leaderboard(evaluations: Sequence[Evaluation], folder: str | Path, unread: Sequence[str] = ()) -> list[Path]:
    """folder/leaderboard.md and folder/leaderboard.csv: one section for each data set, norm, box and eps.

    `unread`: a line on each table that could not be read, for the end of the file.

    A function has one entry, even if it was evaluated under several names: the evaluation on most images (then the latest)
    represents it. A breach in any of them refuses the model. Raises UserError where the files cannot be written.
    """
    text, rows = ["# Leaderboard", "", READ, ""], []
    for (data, _, norm, box, eps), entries in board(evaluations).items():
        where = "" if box == "unit" else ", no box"
        text += [f"## {for_markdown(data)}, {norm}{where}, eps {eps:.4g}", ""]
        ranks = _ranks(entries)
        ranked = [entry for entry in entries if entry.status == "ranked"]
        if ranked:
            text += [markdown(HEAD, [_cells(entry, rank) for entry, rank in zip(ranked, ranks, strict=True)])]
            text += [f"{line}\n" for line in [*_neighbours(ranked, eps), *_doubts(ranked)]]
        for status, title in ASIDE.items():
            aside = [entry for entry in entries if entry.status == status]
            if aside:
                text += [f"### {title}", ""]
                text += bullets([f"{one.evaluation.about.model} ({_weights(one.evaluation)[:12]}): {one.reason}" for one in aside])
                text += [""]
        places = [*map(str, ranks), *[""] * (len(entries) - len(ranks))]
        rows += [_record(entry, rank, (data, norm, box)) for entry, rank in zip(entries, places, strict=True)]
    if not rows:
        text += ["No evaluations yet.", ""]
    if unread:
        text += ["## Not read", "", "What these files hold does not count above.", "", *bullets(unread), ""]
    columns = list(_columns())
    frame = pd.DataFrame(rows, columns=columns)
    folder = Path(folder)
    written = write_bytes(folder / "leaderboard.md", "\n".join(text).rstrip("\n") + "\n")
    return [written, write_bytes(folder / "leaderboard.csv", csv(frame))]


def _weights(one: Evaluation) -> str:
    return one.about.weights


def _ranks(entries: Sequence[Entry]) -> list[int]:
    """1 for the first; equal numbers share a rank."""
    scores = [(entry.row["robust"], entry.row["certified"]) for entry in entries if entry.status == "ranked"]
    return [scores.index(score) + 1 for score in scores]


def _neighbours(ranked: Sequence[Entry], eps: float) -> list[str]:
    """One line per pair of neighbours in the ranking: significant or not, on the images they share."""
    right = [robust_images(entry.evaluation, eps) for entry in ranked]
    pairs = list(combinations(range(len(ranked)), 2))
    shared = [right[a].index.intersection(right[b].index) for a, b in pairs]
    tests = [
        mcnemar(right[a].loc[images].to_numpy(), right[b].loc[images].to_numpy())
        for (a, b), images in zip(pairs, shared, strict=True)
    ]
    lines = []
    for (a, b), images, p in zip(pairs, shared, holm(tests), strict=True):
        if b == a + 1:
            names = " and ".join(ranked[place].evaluation.about.model for place in (a, b))
            verdict = "differ significantly" if p <= ALPHA else "do not differ significantly"
            lines.append(f"{names} {verdict} on the {len(images)} images they share (adjusted p = {p:.2g})")
    return ["\n".join(bullets(lines))] if lines else []


def _doubts(ranked: Sequence[Entry]) -> list[str]:
    """The explanations of the marks of every ranked model that has any."""
    lines = []
    for entry in ranked:
        why = "; ".join(f"{name}: {words}" if words else name for name, words in entry.doubts.items())
        lines += [f"{entry.evaluation.about.model} is doubtful: {why}"] if why else []
    return ["\n".join(bullets(lines))] if lines else []


def _marks(entry: Entry) -> str:
    """The marks, and the other names of the function."""
    also = [f"also submitted as {', '.join(entry.aliases)}"] if entry.aliases else []
    return "; ".join([*filter(None, [entry.marks]), *also])


def _columns() -> list[str]:
    parts = [part + end for part in ("clean", "robust", "certified", "open") for end in ("", "_low", "_high")]
    about = ["date", "device", "weights", "data_digest", "seed", "command", "key"]
    return ["data", "norm", "box", "eps", "status", "rank", "model", *parts, "images", "attacks", "marks", "reason", *about]


def _record(entry: Entry, rank: str, group: tuple[str, str, str]) -> dict[str, Any]:
    about = entry.evaluation.about
    record = dict(zip(("data", "norm", "box"), group, strict=True))
    record |= {"status": entry.status, "rank": rank, "model": about.model, "attacks": " ".join(about.protocol)}
    record |= {"marks": _marks(entry), "reason": entry.reason, "weights": _weights(entry.evaluation)[:12]}
    record |= {"date": about.date, "device": about.device, "seed": str(about.seed), "command": about.command}
    record |= {"data_digest": about.data_digest[:12], "key": entry.key[:12]}
    figures = {column: entry.row[column] for column in entry.row if not column.startswith("count_")}
    if entry.status == "refused":  # no number of an unsound evaluation is published
        figures = {column: figures[column] if column in ("eps", "images") else np.nan for column in figures}
    return record | figures


def _cells(entry: Entry, rank: int) -> list[str]:
    row, about = entry.row, entry.evaluation.about
    shares = [f"{100 * row['clean']:.1f}%", limits(row, "robust"), limits(row, "certified"), f"{100 * row['open']:.1f}%"]
    said = [about.date, about.device]
    digests = [_weights(entry.evaluation)[:12], about.data_digest[:12]]
    tail = [*said, *digests, str(about.seed), Code(about.command)]
    return [str(rank), about.model, *shares, str(row["images"]), ", ".join(about.protocol), _marks(entry), *tail]
