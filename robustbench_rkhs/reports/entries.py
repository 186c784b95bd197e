"""The entries of the leaderboard, ranked: one per model function, whatever the names it was evaluated under."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_rkhs.reports.tables import records
from robustbench_rkhs.verdicts import Evaluation, breaches, by_attack, functions, marks, pooled, summary

ASIDE = {"incomplete": "Incomplete", "unsealed": "Unsealed", "refused": "Refused"}
"""Statuses that are not ranked, with the titles of their tables."""
Section = tuple[str, str, str, str, float]
"""Data set, its digest, norm, box and eps: the same for all entries of a table."""


@dataclass(frozen=True)
class Entry:
    """One function at one eps, with the evaluation that represents it."""

    evaluation: Evaluation
    row: dict[str, Any]
    status: str
    """`ranked`, or one of ASIDE."""
    reason: str
    marks: str
    doubts: dict[str, str]
    """Diagnoses that tripped, and their sentences."""
    aliases: tuple[str, ...] = ()
    """Other names under which the same function was submitted."""

    @property
    def key(self) -> str:
        """The key of the function; for tables without a key, the digest of the weights."""
        return self.evaluation.about.key or self.evaluation.about.weights

    @property
    def public(self) -> dict[str, Any]:
        """Everything shown about it except rank and other names, as comparable text: a submission must not change it."""
        about = self.evaluation.about
        said = [about.model, about.weights, about.date, about.device, about.command, about.seed, about.protocol]
        return {"said": repr(said), "row": repr(sorted(self.row.items())), "status": self.status, "reason": self.reason} | {
            "marks": self.marks
        }


def board(evaluations: Sequence[Evaluation]) -> dict[Section, list[Entry]]:
    """The entries of every section, in their order.

    Adversarial images found in any evaluation of a function count against all of it, and a breach in any refuses it. What stands
    on the board is an evaluation under its first name: one's own before what was submitted, then the earliest. An evaluation
    under another name adds its adversarial images and that name, nothing else. An unsealed table of a model that was evaluated
    again is left out.
    """
    numbers = functions(evaluations)
    kin: dict[int, list[Evaluation]] = {}
    for number, one in zip(numbers, evaluations, strict=True):
        kin.setdefault(number, []).append(one)
    judged = [pooled(one, kin[number]) for number, one in zip(numbers, evaluations, strict=True)]
    unsound: dict[int, int] = {}
    sections: dict[Section, dict[int, list[Evaluation]]] = {}
    for number, one in zip(numbers, judged, strict=True):
        if found := len(breaches(one)):
            unsound[number] = found
        about = one.about
        for eps in sorted(set(about.epsilons)):
            place = (about.data, about.data_digest, about.norm, about.box, eps)
            sections.setdefault(place, {}).setdefault(number, []).append(one)
    whole: dict[Section, list[Entry]] = {}
    for section, groups in sorted(sections.items()):
        entries = [_entry(members, section[4], kin[number], unsound.get(number, 0)) for number, members in groups.items()]
        again = {_named(entry) for entry in entries if entry.evaluation.sealed}
        whole[section] = _order([entry for entry in entries if entry.evaluation.sealed or _named(entry) not in again])
    return whole


def _named(entry: Entry) -> tuple[str, str]:
    """What an unsealed entry and the same model evaluated again have in common."""
    return entry.evaluation.about.model, entry.evaluation.about.weights


def _entry(members: list[Evaluation], eps: float, kin: list[Evaluation], unsound: int) -> Entry:
    """One function's entry in a section, from its evaluations there and all its evaluations."""
    names = list(dict.fromkeys(one.about.model for one in sorted(kin, key=_seniority) if one.about.epsilons))
    first = next(name for name in names if any(one.about.model == name for one in members))
    best = max((one for one in members if one.about.model == first), key=_worth)
    doubts = marks(best, *(one for one in kin if one.about.model == first or not one.about.submitted))
    found = _judge(best, eps, unsound, doubts)
    return Entry(best, *found, doubts, tuple(name for name in names if name != first))


def _seniority(one: Evaluation) -> tuple[str, str, str]:
    return one.about.submitted, one.about.date, one.about.model


def _worth(one: Evaluation) -> tuple[Any, ...]:
    """The evaluation that represents a function: sealed ones first, then most images, then the latest, then most attacks."""
    about = one.about
    return one.sealed, one.table["index"].nunique(), about.date, len(about.protocol), sorted(about.protocol)


def _judge(one: Evaluation, eps: float, unsound: int, doubts: dict[str, str]) -> tuple[dict[str, Any], str, str, str]:
    """The numbers, the status, its reason and the marks."""
    (row,) = records(summary(one, [eps]))
    attacks = by_attack(one)
    masked = sorted(attacks.loc[attacks["masked"] & (attacks["eps"] == eps), "attack"])
    marked = [f"masked: {', '.join(masked)}"] if masked else []
    if doubts:
        marked.append(f"doubtful: {', '.join(doubts)}")
    unaudited = int(row["count_certified"] - row["count_audited"])
    if eps > 0 and unaudited:
        marked.append(f"{unaudited} certified images not audited")
    if row["count_inferred"]:
        marked.append(f"{row['count_inferred']} inferred")
    status, reason = "ranked", ""
    if unsound:
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
        return kind, *score, entry.evaluation.about.model, entry.key

    return sorted(entries, key=place)
