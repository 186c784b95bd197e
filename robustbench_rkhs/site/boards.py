"""Boards: one for each data set, norm, box and eps, with its protocol, its rows, and what is not ranked."""

import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.names import file_word
from robustbench_rkhs.nodes.radius_text import radius_file_word
from robustbench_rkhs.reports.claimed import Claimed, claims_of
from robustbench_rkhs.reports.completion import kept_folder, made_by
from robustbench_rkhs.reports.entries import ASIDE, Entry, Section
from robustbench_rkhs.reports.paired_tests import record_of, remove_records
from robustbench_rkhs.reports.standing import ALPHA, Standing
from robustbench_rkhs.site.board_images import ranked_images
from robustbench_rkhs.site.diagnosis_words import in_words as diagnosis_in_words
from robustbench_rkhs.site.effort_settings import OF_EFFORT
from robustbench_rkhs.site.site_models import Identity, SiteModel, identity
from robustbench_rkhs.site.training_facts import TrainingFacts
from robustbench_rkhs.verdicts import TEST_ABOVE_TRAINING, Brief, stale, typed
from robustbench_rkhs.verdicts.axes import in_words

SHARES = ("clean", "robust", "certified", "open")
THREADS = 4
"""Boards that are made at once."""


@dataclass(frozen=True)
class Column:
    """A column of a board."""

    key: str
    title: str
    numeric: bool = False
    major: bool = False
    """Shown on a phone, too."""
    shown: bool = True
    """Shown at first; others are chosen."""
    filtered: bool = False
    """Its values can be chosen from a list."""
    searched: bool = False
    """The search looks in it while it is shown. Not commands, of which one names many models, nor numbers and digests."""


COLUMNS = (
    Column("rank", "Rank", numeric=True, major=True),
    Column("model", "Model", major=True, searched=True),
    Column("clean", "Clean", numeric=True),
    Column("robust", "Robust", numeric=True, major=True),
    Column("certified", "Certified", numeric=True, major=True),
    Column("open", "Open", numeric=True),
    Column("marks", "Marks", searched=True),
    Column("parameters", "Parameters", numeric=True),
    Column("cost", "Training cost", numeric=True),
    Column("how", "How trained", filtered=True, searched=True),
    Column("extra", "Extra data", filtered=True, shown=False, searched=True),
    Column("passes", "Attack passes per image", numeric=True, shown=False),
    Column("date", "Evaluated", searched=True),
    Column("device", "Device", filtered=True, shown=False, searched=True),
    Column("weights", "Weights", shown=False),
    Column("key", "Function", shown=False),
    Column("data_digest", "Data digest", shown=False),
    Column("seed", "Seed", numeric=True, shown=False),
    Column("command", "Command", shown=False),
)


@dataclass(frozen=True)
class Board:
    """One board."""

    section: Section
    slug: str
    title: str
    eps: str
    """As it was typed."""
    protocol: tuple[tuple[str, str], ...]
    """What all its entries have in common: a word and its value."""
    rows: tuple[dict[str, Any], ...]
    pairs: tuple[str, ...]
    """A line on each pair of neighbours."""
    apart: tuple[dict[str, Any], ...]
    """Sound entries on other images or by other attacks: `reason` says what is missing, `completes` the command that adds it.

    `kept` is empty where that runs anywhere; a submission's checkpoint lies beside the results of the board.
    """
    aside: tuple[dict[str, Any], ...]
    """Entries that are refused, incomplete or unsealed, with the reason; no number of them is shown."""
    claimed: tuple[dict[str, Any], ...]
    """What is claimed elsewhere: not measured here, and never ranked."""
    trial: bool
    """Whether none of its evaluations is published, while others are."""
    contents: tuple[str, ...]
    """Digests of all that the page depends on."""
    images: dict[str, Any] | None = None
    """The images that an entry needs to be ranked, as `ranked_images` has them; None where nothing is ranked."""
    command: str = ""
    """What evaluates another model as the ranked ones were: MODEL stands for it."""

    @cached_property
    def unranked(self) -> dict[str, str]:
        """By page, why a model is not ranked here."""
        apart = {row["page"]: f"not comparable, {row['reason']}" for row in self.apart}
        return apart | {row["page"]: f"{row['status']}, {row['reason']}" for row in self.aside}


def boards(
    sections: Mapping[Section, Sequence[Entry]],
    models: Mapping[Identity, SiteModel],
    facts: Mapping[Identity, TrainingFacts],
    claims: Sequence[Claimed] = (),
    published: Collection[Path] = (),
    records: Path | None = None,
) -> list[Board]:
    """The boards of all sections, in their order, each with the claims about its data, norm, box and eps.

    published: the tables that are published. Where some are, boards without any of these come last, as trials. records: a folder
    for what is not computed again, from which that of boards which are gone is removed.
    """
    slugs = _slugs(sections)
    pool = ThreadPoolExecutor(THREADS)  # the paired tests of a large board take 0.3 s of numpy
    try:
        made = [pool.submit(_board, one, slugs[one], entries, models, facts, records) for one, entries in sections.items()]
        found = [one.result() for one in made]
    finally:
        pool.shutdown(cancel_futures=True)
    if records is not None:
        remove_records(records, {one.slug: len(one.rows) for one in found})
    found = [_with_claims(one, tuple(claim.row for claim in claims_of(claims, one.section))) for one in found]
    shown = {section for section, entries in sections.items() if any(entry.brief.path in published for entry in entries)}
    trials = [replace(one, trial=True, contents=(*one.contents, "trial")) for one in found if shown and one.section not in shown]
    return [*(one for one in found if not shown or one.section in shown), *trials]


def _with_claims(one: Board, claimed: tuple[dict[str, Any], ...]) -> Board:
    return replace(one, claimed=claimed, contents=(*one.contents, repr(claimed))) if claimed else one


def _board(
    section: Section,
    slug: str,
    entries: Sequence[Entry],
    models: Mapping[Identity, SiteModel],
    facts: Mapping[Identity, TrainingFacts],
    records: Path | None,
) -> Board:
    data, _, norm, box, eps = section
    text = typed(eps, [entry.brief.about for entry in entries])
    stand = Standing.of(entries, eps, records and record_of(records, slug))

    def row(entry: Entry, rank: int | None = None, **more: str) -> dict[str, Any]:
        who = identity(entry.brief.about)
        return _row(entry, rank, models.get(who), facts.get(who, TrainingFacts())) | more

    images = ranked_images(stand.ranked[0].brief) if stand.ranked else None
    kept = {id(entry): "kept" if kept_folder(entry.brief) else "" for entry, _ in stand.beside}
    apart = [row(entry, reason=why, completes=stand.completes(entry), kept=kept[id(entry)]) for entry, why in stand.beside]
    aside = [_refused(entry, models.get(identity(entry.brief.about))) for entry in entries if entry.status != "ranked"]
    rows = [row(entry, rank) for entry, rank in zip(stand.ranked, stand.ranks, strict=True)]
    shown = [facts[one].digest for entry in entries if (one := identity(entry.brief.about)) in facts]
    contents = *(entry.brief.content for entry in entries), *(f"{entry.public!r} {stale(entry.brief)}" for entry in entries), *shown
    title = f"{in_words(data, norm, box)}, eps {text}"
    found = _protocol(section, stand.ranked, images), tuple(rows), _pairs(stand), tuple(apart), tuple(aside)
    return Board(section, slug, title, text, *found, (), False, contents, images, stand.admitting)


def _slugs(sections: Mapping[Section, Sequence[Entry]]) -> dict[Section, str]:
    """Distinct file names: with digits of the data's digest where the same data set is there in two versions."""
    plain = {section: _slug(section, entries) for section, entries in sections.items()}
    taken = list(plain.values())
    return {section: slug if taken.count(slug) == 1 else f"{slug}-{section[1][:6]}" for section, slug in plain.items()}


def _slug(section: Section, entries: Sequence[Entry]) -> str:
    data, _, norm, box, eps = section
    word = radius_file_word(typed(eps, [entry.brief.about for entry in entries]))
    return "-".join([file_word(data), norm, *(["nobox"] if box == "none" else []), f"eps{file_word(word)}"])


def _row(entry: Entry, rank: int | None, model: SiteModel | None, facts: TrainingFacts) -> dict[str, Any]:
    """The cells of one entry: numbers as numbers, the rest as text."""
    about, row = entry.brief.about, entry.row
    found: dict[str, Any] = {"rank": rank, "model": entry.name, "page": model.slug if model else "", "aliases": entry.aliases}
    for share in SHARES:
        found[share] = _number(row[share])
        found[f"{share}_low"], found[f"{share}_high"] = _number(row.get(f"{share}_low")), _number(row.get(f"{share}_high"))
    found |= {
        "parameters": facts.parameters,
        "cost": facts.seconds,
        "cost_text": facts.cost,
        "how": facts.how,
        "extra": facts.extra,
    }
    found |= {"marks": marked(entry), "doubts": dict(entry.doubts), "passes": round(entry.brief.passes, 1), "date": about.date}
    found |= {"device": about.device, "weights": about.weights[:12], "key": entry.key[:12], "data_digest": about.data_digest[:12]}
    found |= {"stale": stale(entry.brief)}
    return found | {
        "seed": about.seed,
        "command": made_by(entry.brief),
        "images": entry.brief.images,
        "attacks": list(about.protocol),
    }


def marked(entry: Entry) -> list[str]:
    """The marks of an entry, one text each, with what its diagnoses said."""
    found = [mark for mark in entry.marks.split("; ") if mark and not mark.startswith("doubtful")]
    found += [f"doubtful, {name}: {words}" if words else f"doubtful: {name}" for name, words in entry.doubts.items()]
    found += [f"stale: {why}"] if (why := stale(entry.brief)) else []
    return found + ([f"also evaluated as {', '.join(entry.aliases)}"] if entry.aliases else [])


def _refused(entry: Entry, model: SiteModel | None) -> dict[str, Any]:
    about = entry.brief.about
    found = {
        "model": entry.name,
        "page": model.slug if model else "",
        "status": ASIDE[entry.status].lower(),
        "reason": entry.reason,
    }
    return found | {"weights": about.weights[:12], "command": made_by(entry.brief)}


def _protocol(section: Section, ranked: Sequence[Entry], images: dict[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """What was done to every ranked entry."""
    data, digest, norm, box, _ = section
    inside = "pixels in [0, 1]" if box == "unit" else "none: pixels may leave [0, 1]"
    said = [("Data", f"{data} (digest {digest[:12] or 'unknown'})"), ("Norm", norm), ("Box", inside)]
    if images is None:
        return tuple(said)
    said += [("Minimum images", f"{images['minimum']:,}"), ("Which images", images["which"])]
    said += [("Attacks", ", ".join(ranked[0].brief.about.protocol)), ("Their settings", _attacks(ranked[0].brief))]
    said += [("Diagnosis", _diagnosis(ranked))]
    certified, audited = (sum(int(entry.row[f"count_{part}"]) for entry in ranked) for part in ("certified", "audited"))
    if not certified:
        return *said, ("Audit", "none: nothing is certified")
    words = "a minimal-norm attack on every certified image" if audited == certified else "not on every certified image"
    return *said, ("Audit", words)


def _diagnosis(ranked: Sequence[Entry]) -> str:
    """The diagnoses that every ranked entry went through which was diagnosed at all, and those of some."""
    each = [{one.name: 0 for one in entry.brief.about.diagnostics if one.name != TEST_ABOVE_TRAINING} for entry in ranked]
    each = [names for names in each if names]
    of_all = [name for name in each[0] if all(name in names for names in each)] if each else []
    of_some = [name for name in dict.fromkeys(name for names in each for name in names) if name not in of_all]
    all_, some = (", ".join(map(diagnosis_in_words, names)) for names in (of_all, of_some))
    return "; ".join(filter(None, [all_, f"of some: {some}" if some else ""])) or "none"


def _attacks(one: Brief) -> str:
    """The attacks with their settings; those of an effort as today's code has them, unless older code ran."""
    settings = one.about.settings
    if named := [_settings(node) for node in settings.get("attacks") or [] if isinstance(node, dict)]:
        return "; ".join(named)
    effort = str(settings.get("effort", "unknown"))
    known = OF_EFFORT.get((effort, one.about.norm))
    if known is None or stale(one):
        return f"effort {effort}, as the code had it that evaluated"
    return f"effort {effort}: {'; '.join(known)}"


def _settings(node: dict[str, Any]) -> str:
    """The settings of a method, those that were left at their default as well."""
    rest = ", ".join(f"{name} {value}" for name, value in node.items() if name != "name" and value is not None)
    return f"{node.get('name', '?')} ({rest})" if rest else str(node.get("name", "?"))


def _pairs(stand: Standing) -> tuple[str, ...]:
    lines = []
    for place in range(len(stand.ranked) - 1):
        one, other = (entry.name for entry in stand.ranked[place : place + 2])
        p, images = stand.adjusted[place, place + 1], stand.shared[place, place + 1]
        verdict = "differ significantly" if p <= ALPHA else "do not differ significantly"
        lines.append(f"{one} and {other} {verdict} on the {images} images they share (adjusted p = {p:.2g})")
    return tuple(lines)


def _number(value: Any) -> float | None:
    """A number, or None where it is withheld."""
    return None if value is None or math.isnan(value) else float(value)
