"""Which evaluations may share a figure: the same images, norm, box, eps and attacks; of several such sets, the strongest."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robustbench_rkhs.verdicts.briefs import Brief
from robustbench_rkhs.verdicts.model_marks import no_function

FEWEST = 2
"""Models of a set that is drawn together."""


class Apart(NamedTuple):
    """An evaluation that is not drawn with the others, and why."""

    brief: Brief
    reason: str

    def __str__(self) -> str:
        return f"{self.brief.about.model} ({called(self.brief)}): {self.reason}"


class Choice(NamedTuple):
    """What is drawn together, in the given order, and what is not."""

    chosen: list[Brief]
    apart: list[Apart]


def comparable(briefs: Sequence[Brief], eps: float | None = None, fewest: int = FEWEST) -> Choice:
    """The strongest set of comparable evaluations, one per model, and why each of the others is not in it.

    Comparable: the same images of the same data and split, norm, box, attacks with their settings, and the same list of eps
    (or, given an `eps`, that eps). Stronger: complete and sound; then more images; then more attacks, more models, more passes per
    attacked image, a later date. A set of one model comes after all others, and is drawn only if `fewest` is 1. Of one
    model's evaluations in the set, the latest is drawn.
    """
    firm = _sets(briefs, eps)
    large = [members for members in firm if len(members) >= FEWEST] or [members for members in firm if len(members) >= fewest]
    return _choice(briefs, max(large, key=_strength, default=[]), eps)


def ranked_together(briefs: Sequence[Brief], eps: float) -> Choice:
    """The strongest set of comparable evaluations at an eps, also one of a single model: many that ran less do not outrank it.

    Stronger: more images; then twice the passes per attacked image; then as for `comparable`.
    """
    return _choice(briefs, max(_sets(briefs, eps), key=_spent, default=[]), eps, "ranked")


def _sets(briefs: Sequence[Brief], eps: float | None) -> list[list[Brief]]:
    """The sets of evaluations that are comparable, one per model in each."""
    sets: dict[tuple[object, ...], list[Brief]] = {}
    for brief in briefs:
        if not unfit(brief) and (eps is None or eps in brief.about.epsilons):
            sets.setdefault(_alike(brief, eps), []).append(brief)
    return [_latest(members) for members in sets.values()]


def _choice(briefs: Sequence[Brief], chosen: list[Brief], eps: float | None, done: str = "drawn") -> Choice:
    """`done`: what is done with the chosen ones, as the reasons call it."""
    return Choice(chosen, [Apart(one, _reason(one, chosen, eps, done)) for one in briefs if one not in chosen])


def called(brief: Brief) -> str:
    """The name of its file, or how many images it has."""
    return brief.path.stem if brief.path is not None else f"{brief.images} images"


def unfit(brief: Brief) -> str:
    """Why a table can neither be published nor drawn with others; empty where it can."""
    if brief.breaches:
        return f"{brief.breaches} breaches: an attack contradicts a certificate"
    if not brief.about.complete:
        return "the evaluation is incomplete"
    if not brief.sealed:
        return "the table is from before tables were sealed"
    if not brief.images:
        return "no images"
    return no_function(brief)


def _alike(brief: Brief, eps: float | None) -> tuple[object, ...]:
    about = brief.about
    asked = tuple(sorted(set(about.epsilons))) if eps is None else (eps,)
    return about.data, brief.sample, about.norm, about.box, brief.attacks, asked


def _latest(members: Sequence[Brief]) -> list[Brief]:
    """One per model and function, in the given order: the latest, then that of more certificates."""
    best: dict[tuple[str, str], Brief] = {}
    for brief in members:
        model = brief.about.model, brief.about.key or brief.about.weights
        if model not in best or _age(brief) > _age(best[model]):
            best[model] = brief
    kept = {id(brief) for brief in best.values()}
    return [brief for brief in members if id(brief) in kept]


def _age(brief: Brief) -> tuple[str, int, str]:
    return brief.about.date, len(brief.about.certificates), brief.content


def _strength(members: Sequence[Brief]) -> tuple[object, ...]:
    one = members[0]
    passes = sum(brief.passes for brief in members) / len(members)
    dates = max(brief.about.date for brief in members)
    return one.images, len(one.about.protocol), len(members), passes, dates, sorted(brief.content for brief in members)


def _spent(members: Sequence[Brief]) -> tuple[object, ...]:
    passes = sum(brief.passes for brief in members) / len(members)
    return members[0].images, int(np.log2(1 + passes)), _strength(members)


def _reason(one: Brief, chosen: Sequence[Brief], eps: float | None, done: str) -> str:
    about = one.about
    if why := unfit(one):
        return why
    if eps is not None and eps not in about.epsilons:
        return f"not evaluated at eps {about.words(eps)}"
    if not chosen:
        return "no other model was evaluated on the same images, at the same eps, with the same attacks"
    first = chosen[0]
    if one.images != first.images:
        return f"{one.images} images, those {done} have {first.images}"
    if one.sample != first.sample:
        return f"{one.images} other images than those {done}"
    if one.attacks != first.attacks:
        return _attacks(one, first, done)
    if eps is None and set(about.epsilons) != set(first.about.epsilons):
        return f"eps {_list(one)}, those {done} have {_list(first)}"
    return f"another evaluation of a model that is {done}: the later by date, then with more certificates, is"


def _attacks(one: Brief, drawn: Brief, done: str) -> str:
    """What tells its attacks from those of what is drawn or ranked: the names, else the effort, else the settings."""
    names, effort = [", ".join(brief.about.protocol) or "none" for brief in (one, drawn)], one.about.settings.get("effort")
    if sorted(one.about.protocol) != sorted(drawn.about.protocol):
        return f"attacks {names[0]}, those {done} have {names[1]}"
    if effort != drawn.about.settings.get("effort"):
        return f"effort {effort}, those {done} have {drawn.about.settings.get('effort')}"
    return f"the same attacks with other settings than those {done}"


def _list(one: Brief) -> str:
    return ", ".join(one.about.words(eps) for eps in sorted(set(one.about.epsilons)))
