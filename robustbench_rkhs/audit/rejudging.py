"""Evaluating again what older code evaluated: what is cheap is done, the rest is named with the command that does it."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from robustbench_rkhs.attacks.base import Attack
from robustbench_rkhs.certificates.float32 import FLOAT32
from robustbench_rkhs.certificates.pairwise import PairwiseCertificate
from robustbench_rkhs.certificates.relaxation import RelaxationCertificate
from robustbench_rkhs.evaluation.engine_choice import AnyEngine
from robustbench_rkhs.evaluation.recipe import EvalRecipe, typed_certificates
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.reports.entries import best_of
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.verdicts import Brief, Evaluation, breaches, stale, summary
from robustbench_rkhs.zoo import NamedModel, load_model
from robustbench_rkhs.zoo.loaders import Typed

CHEAP = 60.0
"""Seconds that an evaluation took, up to which it is done again."""


@dataclass(frozen=True)
class Rejudged:
    """What became of one stale table."""

    model: str
    table: Path | None
    done: Path | None
    """The new table; None where it was not evaluated again."""
    line: str
    command: str = ""
    """What evaluates it again, where that was not done here."""


def rejudge(
    out: Path, models: Sequence[str] = (), cheap: float = CHEAP, device: str = "cpu", engine: AnyEngine | None = None
) -> Iterator[Rejudged]:
    """Each model's strongest stale table in OUT/verdicts, for each data set, norm and box: evaluated again, or named.

    It is evaluated again with its own settings where that took at most `cheap` seconds and the model at hand is that function; else
    it is named, with its command. The cheap ones come first. The old table stays. What was submitted is never evaluated here: its
    sender's folder goes through the gate again. `engine`: what computes, as of `evaluate`.
    """
    places, unread = Places(out), list[str]()
    briefs = [one for one in places.cache().read_all(places.verdicts, unread.append) if not models or one.about.model in models]
    yield from (Rejudged("", None, None, f"not read: {line}") for line in unread)
    groups: dict[tuple[str, ...], list[Brief]] = {}
    for one in briefs:
        about = one.about
        groups.setdefault((about.model, about.key, about.data, about.data_digest, about.norm, about.box), []).append(one)
    found = [best for members in groups.values() if stale(best := best_of(members))]
    for seconds, _, one in sorted((_seconds(one), number, one) for number, one in enumerate(found)):
        yield _rejudged(one, seconds, cheap, partial(evaluate, folder=places.verdicts, device=device, engine=engine))


def _seconds(one: Brief) -> float:
    """What its evaluation took: the seconds of all its rows."""
    return float(one.evaluation().table["seconds"].sum())


def _rejudged(one: Brief, seconds: float, cheap: float, evaluated: Callable[..., Evaluation]) -> Rejudged:
    about = one.about
    asked = shlex.join(["rkhs-eval", "--model", about.model, "--norm", about.norm, "--eps", *map(about.words, about.epsilons)])
    command, what = about.command or asked, f"{about.model} ({one.path}): {stale(one)}"
    if about.submitted:
        return Rejudged(
            about.model, one.path, None, f"{what}; it was submitted: send its folder through rkhs-submit again", command
        )
    if seconds > cheap:
        return Rejudged(about.model, one.path, None, f"{what}; it took {seconds:,.0f} s, more than {cheap:g} s", command)
    try:
        recipe = parse(EvalRecipe, _as_typed(one), str(one.path))
        named = _same_model(one)
    except UserError as error:
        return Rejudged(about.model, one.path, None, f"{what}; {error}", command)
    done = evaluated(named.model, named.test, recipe, name=about.model, command=command, loader=Typed(about.model))
    if not done.about.complete or len(breaches(done)):
        return Rejudged(
            about.model, one.path, done.path, f"{what}; evaluated again, incomplete or unsound: see {done.path}", command
        )
    changes = [f"robust at {about.words(row['eps'])} {old:.1%}, now {row['robust']:.1%}" for row, old in _pairs(one, summary(done))]
    return Rejudged(about.model, one.path, done.path, f"{what}; evaluated again: {', '.join(changes)}")


def _as_typed(one: Brief) -> dict[str, Any]:
    """Its settings, without the fields of methods that an evaluation sets where nobody typed them: box and arithmetic.

    A certificate's `real` stays where no row of the table is about float32.
    """
    settings = one.about.settings
    usual = {"box": RelaxationCertificate.model_fields["box"].default}
    if (one.evaluation().table["arithmetic"] == FLOAT32).any():
        usual["network"] = PairwiseCertificate.model_fields["network"].default
    found = {"certificates": _without(typed_certificates(settings), usual)}
    return {**settings, **found, "attacks": _without(settings["attacks"], {"box": Attack.model_fields["box"].default})}


def _without(methods: Sequence[Any], usual: Mapping[str, Any]) -> list[Any]:
    """Stored methods without the fields that have these values."""
    return [
        {key: value for key, value in one.items() if key not in usual or value != usual[key]} if isinstance(one, Mapping) else one
        for one in methods
    ]


def _pairs(one: Brief, rows: object) -> list[tuple[dict[str, float], float]]:
    new: list[dict[str, float]] = rows.to_dict("records")  # type: ignore[attr-defined]
    return [(row, one.row(row["eps"])["robust"]) for row in new]


def _same_model(one: Brief) -> NamedModel:
    """The model of a table. Raises UserError where none of its name is at hand that has its function and data."""
    named = load_model(one.about.model)
    if key_of(named.model) != one.about.key:
        raise UserError(f"the model {one.about.model!r} at hand is another function")
    if named.test.digest != one.about.data_digest:
        raise UserError(f"the data at hand ({named.test.data}) are not those of the table")
    return named
