"""The effect of a submission on the leaderboard: only its own row, and rows of models its adversarial images break, may change."""

from collections.abc import Sequence
from dataclasses import replace

from robustbench_rkhs.reports.entries import Entry, Section, board
from robustbench_rkhs.verdicts import Brief, BriefCache, Evaluation, same_function

Place = tuple[Section, str, str]
"""Key of a row: section, model name and function key."""


def refused_change(existing: Sequence[Evaluation | Brief], new: Evaluation, own: str = "", cache: BriefCache | None = None) -> str:
    """The reason why this evaluation must not be published; empty if it may.

    Another entry may change only through confirmed adversarial images of the same function. `own`: name of an entry that may
    be replaced, for a model that belongs to this repository. `cache`: as for `board`. Cost: computes the leaderboard three times.
    """
    before, broken, after = (_rows([*existing, *more], cache) for more in ([], [_images_alone(new)], [Brief.of(new)]))
    for place, entry in before.items():
        name = entry.brief.about.model
        if name == own:
            continue
        if place not in after:
            return f"the row of {name} would vanish"
        if broken[place].public != entry.public and not same_function(entry.brief.about, new.about):
            return f"the row of {name}, which is another function, would change: {_differs(entry, broken[place])}"
        if after[place].public != broken[place].public:
            return f"the row of {name} would change: {_differs(broken[place], after[place])}"
    for (_, name, _), entry in after.items() if new.about.epsilons else ():
        if name == new.about.model and same_function(entry.brief.about, new.about) and entry.status == "refused":
            return f"its own row would be refused: {entry.reason}"
    return ""


def twin_on_board(existing: Sequence[Evaluation | Brief], new: Evaluation) -> str:
    """The name under which the same function is already listed; empty if it is not listed, or listed under its own name."""
    names = [one.about.model for one in existing if one.about.epsilons and same_function(one.about, new.about)]
    return "" if new.about.model in names else next(iter(sorted(names)), "")


def _images_alone(new: Evaluation) -> Evaluation:
    """The evaluation reduced to its adversarial images: without an eps it has no row of its own on the leaderboard."""
    return replace(new, about=new.about.but(epsilons=()))


def _rows(evaluations: Sequence[Evaluation | Brief], cache: BriefCache | None) -> dict[Place, Entry]:
    return {
        (section, entry.brief.about.model, entry.key): entry
        for section, entries in board(evaluations, cache).items()
        for entry in entries
    }


def _differs(one: Entry, other: Entry) -> str:
    """The first difference between two rows."""
    if one.status != other.status:
        return f"{one.status}, then {other.status}{f' ({other.reason})' if other.reason else ''}"
    for column in ("clean", "robust", "certified", "images"):
        if one.row[column] != other.row[column]:
            return f"{column} {one.row[column]:.4g}, then {other.row[column]:.4g}"
    return "its marks, date or settings"
