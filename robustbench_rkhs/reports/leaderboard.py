"""The leaderboard: models ranked by robust accuracy, then certified accuracy; models that are not ranked follow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs.reports.claimed import Claimed, claims_of
from robustbench_rkhs.reports.entries import ASIDE, Entry, board
from robustbench_rkhs.reports.standing import ALPHA, Standing
from robustbench_rkhs.reports.tables import Code, bullets, csv, limits, markdown, write_bytes
from robustbench_rkhs.runtime.sinks import for_markdown, for_markdown_code
from robustbench_rkhs.verdicts import Brief, BriefCache, Evaluation, stale, typed

HEAD = ["rank", "model", "clean", "robust [95%]", "certified [95%]", "open", "images", "attacks", "marks"]
HEAD += ["date", "device", "weights", "data digest", "seed", "command"]
APART = "Not comparable"
READ = """Ranked by robust accuracy, then by certified accuracy. *robust*: the share of images that are certified or withstood
every attack named; it bounds the true robust accuracy from above, *certified* bounds it from below, and *open* is what lies
between. Limits are Clopper-Pearson 95%. Adversarial images found in any evaluation of the same function count.

How to read a rank: it orders estimates, not models. A model that does not differ significantly from the best of a rank shares
that rank (exact McNemar test on the images they share, Holm-corrected over all pairs of the table, 5%). The lines under a table
say which neighbours differ. A difference that is not significant does not show that two models are equally robust.

Ranked with each other are evaluations on the same images by the same attacks: those on most images. Where some of them were
diagnosed, and their certified images audited, the others must have been, too. What ran less is listed as not comparable, with
what is missing and the command that completes it. A submission whose test accuracy is more than three standard errors above
its training accuracy is marked *test_above_training*; training on both is not seen by this, nor by anything else here.

A model with a breach (a certificate that an attack contradicts), or whose answer to an image depends on its batch, is refused,
one with untested images is incomplete, and one whose
table is from before tables carried the digest of their content is unsealed; none of these is ranked. *masked*: the attack
failed on more than 5% of the images it ran on that others broke. *doubtful*: the diagnoses named tripped on this function, in this
evaluation or another: its survivors may only be hard to attack; lines under the table say why.
*undiagnosed*: no diagnosis was run on it. *also evaluated as*: other names of the same function, which is one entry."""


def write_leaderboard(
    evaluations: Sequence[Evaluation | Brief],
    folder: str | Path,
    unread: Sequence[str] = (),
    cache: BriefCache | None = None,
    today: bool = False,
    claims: Sequence[Claimed] = (),
) -> list[Path]:
    """folder/leaderboard.md and folder/leaderboard.csv: one section for each data set, norm, box and eps.

    `unread`: a line on each table that could not be read, for the end of the file. `cache`: as for `board`. `today`: with the mark
    *stale* on tables that older code made, which depends on the code that writes this; what is published does not.
    `claims`: what is claimed elsewhere, which is listed apart and never ranked.

    A function has one entry, even if it was evaluated under several names: the evaluation on most images (then the latest)
    represents it. A breach in any of them refuses the model. Raises UserError where the files cannot be written.
    """
    text, rows = ["# Leaderboard", "", READ, ""], []
    for (data, _, norm, box, eps), entries in board(evaluations, cache).items():
        where = "" if box == "unit" else ", no box"
        text += [f"## {for_markdown(data)}, {norm}{where}, eps {typed(eps, [entry.brief.about for entry in entries])}", ""]
        stand = Standing.of(entries, eps)
        ranked, ranks, beside = stand.ranked, stand.ranks, stand.beside
        if ranked:
            text += [markdown(HEAD, [_cells(entry, str(rank)) for entry, rank in zip(ranked, ranks, strict=True)])]
            text += [f"{line}\n" for line in [*_neighbours(stand), *_doubts(ranked)]]
        if beside:
            text += [f"### {APART}", "", markdown(HEAD, [_cells(entry, "") for entry, _ in beside])]
            text += ["\n".join(_missing(stand)), ""]
        for status, title in ASIDE.items():
            aside = [entry for entry in entries if entry.status == status]
            if aside:
                text += [f"### {title}", ""]
                text += bullets([f"{one.brief.about.model} ({one.brief.about.weights[:12]}): {one.reason}" for one in aside])
                text += [""]
        if today:
            old = bullets([f"{one.name} is stale: {why}" for one in entries if (why := stale(one.brief))])
            text += [*old, ""] if old else []
        text += _claimed(claims_of(claims, (data, "", norm, box, eps)))
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


def _claimed(claims: Sequence[Claimed]) -> list[str]:
    """The claims about a section, not measured here."""
    if not claims:
        return []
    head = ["model", "clean", "robust, by AutoAttack", "robust, reported", "architecture", "venue", "extra data", "link"]
    rows = []
    for one in claims:
        shares = [one.clean_acc, one.autoattack_acc, one.reported]
        extra = one.row["extra"] + (", marked unreliable there" if one.unreliable else "")
        cells = ["-" if share is None else f"{100 * share:.2f}%" for share in shares]
        rows.append([one.model, *cells, one.architecture, one.venue, extra, one.link])
    said = "Not measured here: what others claim, as their boards state it. It has no rank here and no limits."
    return ["### Claimed elsewhere", "", said, "", markdown(head, rows), ""]


def _neighbours(stand: Standing) -> list[str]:
    """One line per pair of neighbours in the ranking: significant or not, on the images they share."""
    lines = []
    for place in range(len(stand.ranked) - 1):
        names = " and ".join(entry.name for entry in stand.ranked[place : place + 2])
        p, images = stand.adjusted[place, place + 1], stand.shared[place, place + 1]
        verdict = "differ significantly" if p <= ALPHA else "do not differ significantly"
        lines.append(f"{names} {verdict} on the {images} images they share (adjusted p = {p:.2g})")
    return ["\n".join(bullets(lines))] if lines else []


def _missing(stand: Standing) -> list[str]:
    """What each entry that is apart lacks, and the command that completes it."""
    lines = []
    for entry, why in stand.beside:
        command = for_markdown_code(stand.completes(entry))
        lines += [*bullets([f"{entry.name}: {why}"])]
        lines[-1] += f"; {command} completes it" if command else ""
    return lines


def _doubts(ranked: Sequence[Entry]) -> list[str]:
    """The explanations of the marks of every ranked model that has any."""
    lines = []
    for entry in ranked:
        why = "; ".join(f"{name}: {words}" if words else name for name, words in entry.doubts.items())
        lines += [f"{entry.name} is doubtful: {why}"] if why else []
    return ["\n".join(bullets(lines))] if lines else []


def _marks(entry: Entry) -> str:
    """The marks, and the other names of the function."""
    also = [f"also evaluated as {', '.join(entry.aliases)}"] if entry.aliases else []
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
    return [rank, entry.name, *shares, str(row["images"]), ", ".join(about.protocol), _marks(entry), *tail]
