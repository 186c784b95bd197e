"""What a submission would change on the leaderboard: nothing but its own row, and rows that its adversarial images break."""

from collections.abc import Sequence
from dataclasses import replace

from robustbench_rkhs.reports.entries import Entry, Section, board
from robustbench_rkhs.verdicts import Evaluation, same_function

Place = tuple[Section, str, str]
"""A row: its section, its model's name and its function."""


def refused_change(existing: Sequence[Evaluation], new: Evaluation, own: str = "") -> str:
    """Why the board must not become what it would be with this evaluation; empty where it may.

    Another entry may change by confirmed adversarial images of that very function alone; `own`: the name of an entry that may be
    replaced, of a model of this place. Cost: the board three times.
    """
    before, broken, after = (_rows([*existing, *more]) for more in ([], [_images_alone(new)], [new]))
    for place, entry in before.items():
        name = entry.evaluation.about.model
        if name == own:
            continue
        if place not in after:
            return f"the row of {name} would vanish"
        if broken[place].public != entry.public and not same_function(entry.evaluation.about, new.about):
            return f"the row of {name}, which is another function, would change: {_differs(entry, broken[place])}"
        if after[place].public != broken[place].public:
            return f"the row of {name} would change: {_differs(broken[place], after[place])}"
    for (_, name, _), entry in after.items() if new.about.epsilons else ():
        if name == new.about.model and same_function(entry.evaluation.about, new.about) and entry.status == "refused":
            return f"its own row would be refused: {entry.reason}"
    return ""


def twin_on_board(existing: Sequence[Evaluation], new: Evaluation) -> str:
    """The name under which the same function stands already; empty where it does not, or under the same name."""
    names = [one.about.model for one in existing if one.about.epsilons and same_function(one.about, new.about)]
    return "" if new.about.model in names else next(iter(sorted(names)), "")


def _images_alone(new: Evaluation) -> Evaluation:
    """The evaluation with its adversarial images only: it has no eps at which it would stand on the board."""
    return replace(new, about=new.about.but(epsilons=()))


def _rows(evaluations: Sequence[Evaluation]) -> dict[Place, Entry]:
    return {
        (section, entry.evaluation.about.model, entry.key): entry
        for section, entries in board(evaluations).items()
        for entry in entries
    }


def _differs(one: Entry, other: Entry) -> str:
    """The first thing that two rows say otherwise."""
    if one.status != other.status:
        return f"{one.status}, then {other.status}{f' ({other.reason})' if other.reason else ''}"
    for column in ("clean", "robust", "certified", "images"):
        if one.row[column] != other.row[column]:
            return f"{column} {one.row[column]:.4g}, then {other.row[column]:.4g}"
    return "its marks, date or settings"
