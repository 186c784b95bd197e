"""The entries of the leaderboard, ranked: one per model function, whatever the names it was evaluated under."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustbench_rkhs.verdicts import NO_FUNCTION, Brief, BriefCache, Evaluation, functions, marks, stale

ASIDE = {"incomplete": "Incomplete", "unsealed": "Unsealed", "refused": "Refused"}
"""Statuses that are not ranked, with the titles of their tables."""
Section = tuple[str, str, str, str, float]
"""Data set, its digest, norm, box and eps: the same for all entries of a table."""


@dataclass(frozen=True)
class Entry:
    """One function at one eps, with the evaluation that represents it."""

    brief: Brief
    row: dict[str, Any]
    status: str
    """`ranked`, or one of ASIDE."""
    reason: str
    marks: str
    doubts: dict[str, str]
    """Diagnoses that tripped, and their sentences."""
    aliases: tuple[str, ...] = ()
    """Other names under which the same function was submitted."""

    namesake: bool = False
    """Whether another function of its section has the same name."""

    @property
    def name(self) -> str:
        """The model's name, with the first digits of its key where another function has it, too."""
        return f"{self.brief.about.model} ({self.key[:6]})" if self.namesake else self.brief.about.model

    @property
    def key(self) -> str:
        """The key of the function; for tables without a key, the digest of the weights."""
        return self.brief.about.key or self.brief.about.weights

    @property
    def public(self) -> dict[str, Any]:
        """Everything shown about it except rank and other names, as comparable text: a submission must not change it."""
        about = self.brief.about
        said = [about.model, about.weights, about.date, about.device, about.command, about.seed, about.protocol]
        return {"said": repr(said), "row": repr(sorted(self.row.items())), "status": self.status, "reason": self.reason} | {
            "marks": self.marks
        }


def board(evaluations: Sequence[Evaluation | Brief], cache: BriefCache | None = None) -> dict[Section, list[Entry]]:
    """The entries of every section, in their order.

    Adversarial images found in any evaluation of a function count against all of it, and a breach in any refuses it. What stands
    on the board is an evaluation under its first name: one's own before what was submitted, then the earliest. An evaluation
    under another name adds its adversarial images and that name, nothing else. An unsealed table of a model that was evaluated
    again is left out. `cache`: where briefs of tables with the adversarial images of others are kept.
    """
    briefs, cache = [Brief.of(one) for one in evaluations], cache or BriefCache()
    numbers = functions(briefs)
    kin: dict[int, list[Brief]] = {}
    for number, one in zip(numbers, briefs, strict=True):
        kin.setdefault(number, []).append(one)
    judged = [cache.pooled(one, kin[number]) for number, one in zip(numbers, briefs, strict=True)]
    unsound: dict[int, int] = {}
    sections: dict[Section, dict[int, list[Brief]]] = {}
    for number, one in zip(numbers, judged, strict=True):
        if one.breaches:
            unsound[number] = one.breaches
        about = one.about
        for eps in sorted(set(about.epsilons)):
            place = (about.data, about.data_digest, about.norm, about.box, eps)
            sections.setdefault(place, {}).setdefault(number, []).append(one)
    shown: dict[str, set[str]] = {}
    for one in briefs:
        if one.about.logits:
            shown.setdefault(one.about.key, set()).add(one.about.model)
    whole: dict[Section, list[Entry]] = {}
    for section, groups in sorted(sections.items()):
        entries = [_entry(members, section[4], kin[number], unsound.get(number, 0)) for number, members in groups.items()]
        entries = [_marked(one, unverified(one, shown)) for one in entries]
        again = {_named(entry) for entry in entries if entry.brief.sealed}
        whole[section] = _order(_told_apart([entry for entry in entries if entry.brief.sealed or _named(entry) not in again]))
    return whole


def _marked(entry: Entry, mark: str) -> Entry:
    """The entry with one more mark, if there is one."""
    return replace(entry, marks="; ".join(filter(None, [entry.marks, mark]))) if mark else entry


def _told_apart(entries: Sequence[Entry]) -> list[Entry]:
    """The entries of a section, with those that share a name marked: two files of one stem are called alike, for example."""
    names = Counter(entry.brief.about.model for entry in entries)
    return [replace(entry, namesake=True) if names[entry.brief.about.model] > 1 else entry for entry in entries]


def unverified(entry: Entry, shown: Mapping[str, Collection[str]]) -> str:
    """The mark of a table with the key of another one's function, and no logits that show that it is of that function.

    shown: by key, the models whose tables have logits.
    """
    about = entry.brief.about
    if not about.key or about.logits:
        return ""
    others = sorted(shown.get(about.key, ()))
    return f"unverified: it has the key of {', '.join(others)}, and no logits that show it" if others else ""


def _named(entry: Entry) -> tuple[str, str]:
    """What an unsealed entry and the same model evaluated again have in common."""
    return entry.brief.about.model, entry.brief.about.weights


def _entry(members: list[Brief], eps: float, kin: list[Brief], unsound: int) -> Entry:
    """One function's entry in a section, from its evaluations there and all its evaluations."""
    names = list(dict.fromkeys(one.about.model for one in sorted(kin, key=_seniority) if one.about.epsilons))
    first = next(name for name in names if any(one.about.model == name for one in members))
    best = best_of([one for one in members if one.about.model == first])
    doubts = marks_of(best, kin)
    found = _judge(best, eps, unsound, doubts)
    return Entry(best, *found, doubts, tuple(name for name in names if name != first))


def marks_of(one: Brief, kin: Sequence[Brief]) -> dict[str, str]:
    """The marks of a function, from one evaluation of it and the others: what was submitted under another name marks nothing."""
    return marks(one, *(other for other in kin if other.about.model == one.about.model or not other.about.submitted))


def _seniority(one: Brief) -> tuple[str, str, str]:
    return one.about.submitted, one.about.date, one.about.model


def best_of(members: Sequence[Brief]) -> Brief:
    """The evaluation that represents a model: sealed and complete; then on most images, by most attacks, by those of most passes.

    Of the same attacks one's own, the latest (of one day, that of today's code), comes before what was submitted, the earliest, so
    that sending it again changes nothing.
    """
    if len(members) == 1:
        return members[0]
    spent: dict[str, float] = {}
    for one in members:
        spent[one.attacks] = max(one.passes, spent.get(one.attacks, 0.0))

    def worth(one: Brief) -> tuple[Any, ...]:
        about = one.about
        return one.sealed, about.complete, one.images, len(about.protocol), spent[one.attacks]

    best = [one for one in members if worth(one) == max(map(worth, members))]
    own = [one for one in best if not one.about.submitted]
    if own:
        date = max(one.about.date for one in own)
        latest = [one for one in own if one.about.date == date]
        fresh = [one for one in latest if len(latest) == 1 or not stale(one)] or latest
        return max(fresh, key=lambda one: (len(one.about.certificates), one.content))
    return min(best, key=lambda one: (one.about.submitted, one.about.date, -len(one.about.certificates), one.content))


def _judge(one: Brief, eps: float, unsound: int, doubts: dict[str, str]) -> tuple[dict[str, Any], str, str, str]:
    """The numbers, the status, its reason and the marks."""
    row = one.row(eps)
    masked = one.masked[eps]
    marked = [f"masked: {', '.join(masked)}"] if masked else []
    if doubts:
        marked.append(f"doubtful: {', '.join(doubts)}")
    unaudited = int(row["count_certified"] - row["count_audited"])
    if eps > 0 and unaudited:
        marked.append(f"{unaudited} certified images not audited")
    if row["count_inferred"]:
        marked.append(f"{row['count_inferred']} inferred")
    status, reason = "ranked", ""
    if why := "; ".join(f"{name}: {words}" for name, words in doubts.items() if name in NO_FUNCTION):
        status, reason = "refused", f"its answer to an image is no function of that image: {why}"
    elif unsound:
        status, reason = "refused", f"{unsound} breaches: an attack contradicts a certificate"
    elif not one.sealed:
        status, reason = "unsealed", "the table is from before tables were sealed: evaluate it again"
    elif row["count_untested"]:
        status, reason = "incomplete", f"{row['count_untested']} of {row['images']} images are untested"
    elif not one.about.complete:
        status, reason = "incomplete", "the evaluation was interrupted"
    elif not row["images"]:
        status, reason = "incomplete", "no images"
    return row, status, reason, "; ".join(marked)


def _order(entries: Sequence[Entry]) -> list[Entry]:
    """Ranked first, by robust then certified accuracy; ties by name, so that the file is reproducible."""

    def place(entry: Entry) -> tuple[Any, ...]:
        kind = ["ranked", *ASIDE].index(entry.status)
        score = (-entry.row["robust"], -entry.row["certified"]) if kind == 0 else (0.0, 0.0)
        return kind, *score, entry.brief.about.model, entry.key

    return sorted(entries, key=place)
