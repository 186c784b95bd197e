"""The evaluations of a table for a paper: one for each named model, all in one domain, and what tells them apart."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.reports.entries import best_of
from robustbench_rkhs.reports.table_request import Column
from robustbench_rkhs.verdicts import Brief, BriefCache, Evaluation, comparable, functions, marks, pooled
from robustbench_rkhs.verdicts.axes import domain


@dataclass(frozen=True)
class TableModel:
    """One row: the evaluation, with the adversarial images of all evaluations of its function, and what is doubtful about it."""

    name: str
    """As it is printed."""
    brief: Brief
    evaluation: Evaluation
    doubts: tuple[str, ...]
    """Sentences, printed under the table; its robust accuracy is then not compared with others'."""


def table_models(
    briefs: Sequence[Brief], models: Sequence[str], names: Sequence[str], columns: Sequence[Column], cache: BriefCache
) -> list[TableModel]:
    """A row for each of these models, in this order, from the strongest evaluations that can be compared.

    Where no evaluation of a model has the same images and attacks as the others', its best one counts, and a note says what
    differs. Raises UserError for a model without verdicts, several data sets, norms or boxes, or as many names as models.
    """
    known = list(dict.fromkeys(one.about.model for one in briefs if one.about.epsilons))
    if not known:
        raise UserError("--table: no verdicts; run rkhs-eval first")
    for model in models:
        if model not in known:
            raise UserError(f"--model {model!r}: no verdicts; {did_you_mean(model, known)}")
    models = list(dict.fromkeys(models)) or known
    if names and len(names) != len(models):
        raise UserError(f"--names: expected one for each of the {len(models)} models, found {len(names)}")
    asked = [one for one in briefs if one.about.model in models and one.about.epsilons]
    here = _one_domain(asked, models, columns)
    kin: dict[int, list[Brief]] = {}
    numbers = functions(briefs)
    for number, one in zip(numbers, briefs, strict=True):
        kin.setdefault(number, []).append(one)
    functions_of = {id(one): number for number, one in zip(numbers, briefs, strict=True)}
    own = {id(one): kin[functions_of[id(one)]] for one in briefs}
    alike = {one.about.model: one for one in comparable(here, fewest=1).chosen}
    apart = {id(one): why for one, why in comparable(here, fewest=1).apart}
    rows = []
    for model, name in zip(models, names or models, strict=True):
        brief = alike.get(model) or best_of([one for one in here if one.about.model == model])
        others = own[id(brief)]
        judged = cache.pooled(brief, others)
        whole = pooled(
            brief.evaluation(), [other.evaluation() for other in others if other is not brief]
        )  # the file of `judged` is that of `brief`
        differs = [f"not comparable with the others: {apart[id(brief)]}"] if id(brief) in apart and len(models) > 1 else []
        namesakes = len({functions_of[id(one)] for one in here if one.about.model == model})
        if namesakes > 1:
            differs.append(f"{namesakes} different functions have this name; the row is that of weights {brief.about.weights[:8]}")
        rows.append(TableModel(name, judged, whole, (*differs, *_doubts(judged, others))))
    return rows


def _one_domain(asked: Sequence[Brief], models: Sequence[str], columns: Sequence[Column]) -> list[Brief]:
    """The evaluations of the data set, norm and box in which every model was evaluated, at most of the columns' eps."""
    groups: dict[str, list[Brief]] = {}
    for one in asked:
        groups.setdefault(domain(one.about), []).append(one)
    whole = {name: group for name, group in groups.items() if {one.about.model for one in group} == set(models)}
    if not whole:
        where = "; ".join(f"{name}: {', '.join(sorted({one.about.model for one in group}))}" for name, group in groups.items())
        raise UserError(f"--table: expected models evaluated on one data set, norm and box, found {where}")
    radii = {column.eps for column in columns if column.quantity == "robust"}
    worth = {name: _worth(group, models, radii) for name, group in whole.items()}
    first = [name for name, one in worth.items() if one == max(worth.values())]
    if len(first) > 1:
        had = "; ".join(f"{name} at eps {', '.join(_epsilons(whole[name]))}" for name in first)
        raise UserError(f"--table: these models were evaluated on {had}: ask for robust@ one of these")
    return whole[first[0]]


def _worth(group: Sequence[Brief], models: Sequence[str], radii: set[float]) -> tuple[int, int]:
    """How many of the asked radii the evaluations of a domain have, over all models, and on how many images at least."""
    count, images = 0, []
    for model in models:
        own = [one for one in group if one.about.model == model]
        best = max(own, key=lambda one: (len(radii & set(one.about.epsilons)), one.images))
        count += len(radii & set(best.about.epsilons))
        images.append(best.images)
    return count, min(images)


def _epsilons(group: Sequence[Brief]) -> list[str]:
    return [group[0].about.words(eps) for eps in sorted({eps for one in group for eps in one.about.epsilons})]


def _doubts(one: Brief, kin: Sequence[Brief]) -> list[str]:
    """What is doubtful about an evaluation, in sentences."""
    lines = []
    if one.breaches or any(other.breaches for other in kin):
        lines.append("unsound: an attack contradicts a certificate, so none of its numbers counts")
    if not one.about.complete:
        lines.append("the evaluation is incomplete")
    if not one.sealed:
        lines.append("the table is from before tables were sealed")
    lines += [f"doubtful, {name}: {words}" if words else f"doubtful: {name}" for name, words in marks(one, *kin).items()]
    return lines
