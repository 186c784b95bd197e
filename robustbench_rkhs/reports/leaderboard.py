"""The leaderboard: models ranked by robust accuracy, then certified accuracy; models that are not ranked follow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs.reports.entries import ASIDE, Entry, board
from robustbench_rkhs.reports.tables import Code, bullets, csv, limits, markdown, write_bytes
from robustbench_rkhs.runtime.sinks import for_markdown
from robustbench_rkhs.verdicts import Brief, BriefCache, Evaluation, comparable, holm, mcnemar_all, typed

ALPHA = 0.05
HEAD = ["rank", "model", "clean", "robust [95%]", "certified [95%]", "open", "images", "attacks", "marks"]
HEAD += ["date", "device", "weights", "data digest", "seed", "command"]
APART = "Not ranked: other images or attacks"
READ = """Ranked by robust accuracy, then by certified accuracy. *robust*: the share of images that are certified or withstood
every attack named; it bounds the true robust accuracy from above, *certified* bounds it from below, and *open* is what lies
between. Limits are Clopper-Pearson 95%. Adversarial images found in any evaluation of the same function count.

How to read a rank: it orders estimates, not models. The lines under a table say which neighbours differ significantly (exact
McNemar test on the images they share, Holm-corrected over all pairs of the table, 5%). A difference that is not significant
does not show that two models are equally robust.

Ranked with each other are evaluations on the same images by the same attacks: those on most images. Others are shown apart.

A model with a breach (a certificate that an attack contradicts), or whose answer to an image depends on its batch, is refused,
one with untested images is incomplete, and one whose
table is from before tables carried the digest of their content is unsealed; none of these is ranked. *masked*: the attack
failed on more than 5% of the images it ran on that others broke. *doubtful*: the diagnoses named tripped on this function, in this
evaluation or another: its survivors may only be hard to attack; lines under the table say why.
*undiagnosed*: no diagnosis was run on it. *also submitted as*: other names of the same function, which is one entry."""


def write_leaderboard(
    evaluations: Sequence[Evaluation | Brief], folder: str | Path, unread: Sequence[str] = (), cache: BriefCache | None = None
) -> list[Path]:
    """folder/leaderboard.md and folder/leaderboard.csv: one section for each data set, norm, box and eps.

    `unread`: a line on each table that could not be read, for the end of the file. `cache`: as for `board`.

    A function has one entry, even if it was evaluated under several names: the evaluation on most images (then the latest)
    represents it. A breach in any of them refuses the model. Raises UserError where the files cannot be written.
    """
    text, rows = ["# Leaderboard", "", READ, ""], []
    for (data, _, norm, box, eps), entries in board(evaluations, cache).items():
        where = "" if box == "unit" else ", no box"
        text += [f"## {for_markdown(data)}, {norm}{where}, eps {typed(eps, [entry.brief.about for entry in entries])}", ""]
        ranked, beside = _compared(entries, eps)
        ranks = _ranks(ranked)
        if ranked:
            text += [markdown(HEAD, [_cells(entry, str(rank)) for entry, rank in zip(ranked, ranks, strict=True)])]
            text += [f"{line}\n" for line in [*_neighbours(ranked, eps), *_doubts(ranked)]]
        if beside:
            text += [f"### {APART}", "", markdown(HEAD, [_cells(entry, "") for entry, _ in beside])]
            text += ["\n".join(bullets([f"{entry.brief.about.model}: {why}" for entry, why in beside])), ""]
        for status, title in ASIDE.items():
            aside = [entry for entry in entries if entry.status == status]
            if aside:
                text += [f"### {title}", ""]
                text += bullets([f"{one.brief.about.model} ({one.brief.about.weights[:12]}): {one.reason}" for one in aside])
                text += [""]
        rows += [_record(entry, str(rank), (data, norm, box)) for entry, rank in zip(ranked, ranks, strict=True)]
        rows += [_record(entry, "", (data, norm, box)) | {"status": "apart", "reason": why} for entry, why in beside]
        rows += [_record(entry, "", (data, norm, box)) for entry in entries if entry.status != "ranked"]
    if not rows:
        text += ["No evaluations yet.", ""]
    if unread:
        text += ["## Not read", "", "What these files hold does not count above.", "", *bullets(unread), ""]
    columns = list(_columns())
    frame = pd.DataFrame(rows, columns=columns)
    folder = Path(folder)
    written = write_bytes(folder / "leaderboard.md", "\n".join(text).rstrip("\n") + "\n")
    return [written, write_bytes(folder / "leaderboard.csv", csv(frame))]


def _compared(entries: Sequence[Entry], eps: float) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """The entries that are ranked with each other, and those on other images or by other attacks, with the reason."""
    sound = [entry for entry in entries if entry.status == "ranked"]
    apart = {id(one): why for one, why in comparable([entry.brief for entry in sound], eps, fewest=1).apart}
    beside = [(entry, apart[id(entry.brief)]) for entry in sound if id(entry.brief) in apart]
    return [entry for entry in sound if id(entry.brief) not in apart], beside


def _ranks(ranked: Sequence[Entry]) -> list[int]:
    """1 for the first; equal numbers share a rank."""
    scores = [(entry.row["robust"], entry.row["certified"]) for entry in ranked]
    return [scores.index(score) + 1 for score in scores]


def _neighbours(ranked: Sequence[Entry], eps: float) -> list[str]:
    """One line per pair of neighbours in the ranking: significant or not, on the images they share."""
    index = np.unique(np.concatenate([entry.brief.index for entry in ranked]))
    right, answered = np.zeros((2, len(ranked), len(index)), dtype=bool)
    for place, entry in enumerate(ranked):
        images = np.searchsorted(index, entry.brief.index)
        right[place, images], answered[place, images] = entry.brief.robust[eps], True
    tests, shared = mcnemar_all(right, answered)
    first, second = np.triu_indices(len(ranked), 1)
    adjusted = dict(zip(zip(first.tolist(), second.tolist(), strict=True), holm(tests[first, second]), strict=True))
    lines = []
    for place in range(len(ranked) - 1):
        names = " and ".join(entry.brief.about.model for entry in ranked[place : place + 2])
        p, images = adjusted[place, place + 1], shared[place, place + 1]
        verdict = "differ significantly" if p <= ALPHA else "do not differ significantly"
        lines.append(f"{names} {verdict} on the {images} images they share (adjusted p = {p:.2g})")
    return ["\n".join(bullets(lines))] if lines else []


def _doubts(ranked: Sequence[Entry]) -> list[str]:
    """The explanations of the marks of every ranked model that has any."""
    lines = []
    for entry in ranked:
        why = "; ".join(f"{name}: {words}" if words else name for name, words in entry.doubts.items())
        lines += [f"{entry.brief.about.model} is doubtful: {why}"] if why else []
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
    about = entry.brief.about
    record = dict(zip(("data", "norm", "box"), group, strict=True))
    record |= {"status": entry.status, "rank": rank, "model": about.model, "attacks": " ".join(about.protocol)}
    record |= {"marks": _marks(entry), "reason": entry.reason, "weights": entry.brief.about.weights[:12]}
    record |= {"date": about.date, "device": about.device, "seed": str(about.seed), "command": about.command}
    record |= {"data_digest": about.data_digest[:12], "key": entry.key[:12]}
    figures = {column: entry.row[column] for column in entry.row if not column.startswith("count_")}
    if entry.status == "refused":  # no number of an unsound evaluation is published
        figures = {column: figures[column] if column in ("eps", "images") else np.nan for column in figures}
    return record | figures


def _cells(entry: Entry, rank: str) -> list[str]:
    row, about = entry.row, entry.brief.about
    shares = [f"{100 * row['clean']:.1f}%", limits(row, "robust"), limits(row, "certified"), f"{100 * row['open']:.1f}%"]
    said = [about.date, about.device]
    digests = [entry.brief.about.weights[:12], about.data_digest[:12]]
    tail = [*said, *digests, str(about.seed), Code(about.command)]
    return [rank, about.model, *shares, str(row["images"]), ", ".join(about.protocol), _marks(entry), *tail]
