"""Figures and tables of several models: the strongest comparable evaluations, and a list of those that are not drawn."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from robustbench_rkhs.nodes.radius_text import radius_file_word
from robustbench_rkhs.reports.curves import draw_curve
from robustbench_rkhs.reports.drawn import Drawn
from robustbench_rkhs.reports.own_files import Written, domain_stem
from robustbench_rkhs.reports.tables import bullets, write_bytes, write_tables
from robustbench_rkhs.reports.tradeoff import draw_tradeoff
from robustbench_rkhs.verdicts import Apart, Brief, Choice, Evaluation, comparable, no_function, typed
from robustbench_rkhs.verdicts.remembered import remembering

MOST = 12
"""Models of a figure, where none are named."""
Reader = Callable[[Brief], Evaluation]
READ = """Drawn together are evaluations of the same images with the same norm, box, eps and attacks: of several such sets the one
on most images (then with most attacks, then of most models). These are not in it:"""


def draw_together(briefs: Sequence[Brief], drawn: Drawn, most: int | None = None) -> tuple[Written, list[str]]:
    """all-DATA-NORM: curves, tables, and the trade-off at every eps, of the comparable evaluations of each data set, norm and box.

    most: models of a figure, those of the highest robust accuracy; all where not given. Nothing is drawn of one model alone.
    Returns the paths by kind, and a line on each evaluation that is not drawn, which all-DATA-NORM-apart.md lists as well.
    """
    with remembering():
        return _draw_groups(briefs, drawn, most)


def _draw_groups(briefs: Sequence[Brief], drawn: Drawn, most: int | None) -> tuple[Written, list[str]]:
    groups: dict[str, list[Brief]] = {}
    for one in briefs:
        if one.about.epsilons:
            groups.setdefault(domain_stem("all", one.about), []).append(one)
    written: Written = {"curves": [], "tables": [], "tradeoff": []}
    lines: list[str] = []
    for group, members in groups.items():
        read = cache(Brief.evaluation)  # a table is read once for all the figures of its group, which may take 0.1 s
        found = _best(comparable(members), most)
        if found.chosen:
            inputs = [one.content for one in found.chosen]
            for kind, draw in (("curves", draw_curve), ("tables", write_tables)):
                written[kind] += drawn.once(kind, drawn.folder / kind / group, inputs, partial(_of, draw, found.chosen, read))
        written["tradeoff"] += _tradeoffs(members, group, drawn, most, read)
        page = drawn.folder / "tables" / f"{group}-apart.md"
        if len(members) > 1 and found.apart:
            lines += [f"not in {group}: {apart}" for apart in found.apart]
            text = "\n".join([f"# Not in {group}", "", READ, "", *bullets([str(apart) for apart in found.apart]), ""])
            written.setdefault("apart", []).extend(drawn.once("apart", page, [text], partial(_page, text)))
        else:
            page.unlink(missing_ok=True)
    return written, lines


def _tradeoffs(members: Sequence[Brief], group: str, drawn: Drawn, most: int | None, read: Reader) -> list[Path]:
    paths = []
    for eps in sorted({eps for one in members for eps in one.about.epsilons}):
        told = [one for one in members if not no_function(one)]
        chosen = _best(comparable(told, eps), most, eps).chosen
        if chosen:
            word = radius_file_word(typed(eps, [one.about for one in chosen]))
            stem, inputs = drawn.folder / "tradeoff" / f"{group}-eps{word}", [repr(eps), *(one.content for one in chosen)]
            paths += drawn.once("tradeoff", stem, inputs, partial(_of, partial(_tradeoff, eps), chosen, read))
    return paths


def _of(draw: Callable[[Sequence[Evaluation], Path], list[Path]], briefs: Sequence[Brief], read: Reader, stem: Path) -> list[Path]:
    """What is drawn of these, whose tables are read now."""
    return draw([read(one) for one in briefs], stem)


def _tradeoff(eps: float, evaluations: Sequence[Evaluation], stem: Path) -> list[Path]:
    return draw_tradeoff(evaluations, eps, stem)


def _page(text: str, path: Path) -> list[Path]:
    return [write_bytes(path, text)]


def _best(choice: Choice, most: int | None, eps: float | None = None) -> Choice:
    """The choice, limited to the models of the highest mean robust accuracy (then certified), in the order given."""
    if most is None or len(choice.chosen) <= most:
        return choice
    ranked = sorted(choice.chosen, key=lambda one: (*_scores(one, eps), one.about.model), reverse=True)
    kept = {id(one) for one in ranked[:most]}
    beyond = f"comparable, but not among the {most} of the highest robust accuracy; name models to draw others"
    return Choice(
        [one for one in choice.chosen if id(one) in kept],
        [*choice.apart, *(Apart(one, beyond) for one in choice.chosen if id(one) not in kept)],
    )


def _scores(one: Brief, eps: float | None) -> tuple[float, float]:
    rows = one.rows if eps is None else [one.row(eps)]
    robust = [row["robust"] if row["robust"] == row["robust"] else row["certified"] for row in rows]  # NaN: withheld
    return sum(robust) / len(rows), sum(row["certified"] for row in rows) / len(rows)
