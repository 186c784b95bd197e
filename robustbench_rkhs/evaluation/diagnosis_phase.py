"""The diagnosis phase: checks for gradient masking; where one trips, more attacks run on the survivors."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.evaluation.counting import run_attack
from robustbench_rkhs.evaluation.diagnostics import diagnose, escalated
from robustbench_rkhs.evaluation.diagnostics.transfer import Transfer
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.verdicts import COLUMNS, About, Breach, Diagnosis, Noticed, Part, Record
from robustbench_rkhs.verdicts.image_states import counted

QUICK = 16
"""Images of the diagnosis where the effort is quick: more would cost as much as its attacks."""


class DiagnosisResult(NamedTuple):
    """What the diagnoses said, and what was broken because of it."""

    diagnostics: Sequence[Diagnosis]
    marks: list[str]
    """Names of the diagnoses that tripped; `undiagnosed` where they are switched off."""
    tables: list[pd.DataFrame]
    """Rows of the escalated attacks, under `check:` and their label, and of `transfer`: they break images, but are no part of the
    protocol."""
    breaches: list[Breach]
    failed: list[str]
    """Errors that these attacks ended in."""
    finished: bool = True
    """Whether every attack that was due ran: the time may have been up before."""


def diagnose_model(
    subject: Subject,
    recipe: EvalRecipe,
    about: About,
    tables: Sequence[pd.DataFrame],
    protocol: Sequence[Attack],
    predicted: Tensor,
    certified: Tensor,
    transfer: Transfer | None = None,
    left: Callable[[], float] = lambda: math.inf,
) -> DiagnosisResult:
    """Diagnose the model at the eps that says most; where a diagnosis trips, escalate on the survivors of every eps.

    Largest eps first; an image that withstands the escalation there is not asked again below. No diagnosis of a smoothed classifier
    (it draws by design, and its claims are those of its certificate), and where the recipe switches it off.
    `transfer`: of an undefended twin, diagnosed with the rest and then tried on every survivor, in the same order.
    `left`: seconds left; where none are, no further block of an attack is begun. The diagnosis itself is not cut.
    """
    if not len(subject.split):
        return DiagnosisResult([], [], [], [], [])
    known = Record(pd.concat(tables, ignore_index=True), about)
    said = _diagnosed(subject, recipe, known, certified, transfer)
    marks = [one.name for one in said if one.tripped]
    new: list[pd.DataFrame] = []
    breaches: list[Breach] = []
    failed: list[str] = []
    if transfer is not None:
        attack = transfer.model_copy(update={"box": about.box})
        new, breaches, failed = _escalate(subject, recipe, known, {"transfer": attack}, predicted, certified, left)
        known = Record(pd.concat([known.table, *new], ignore_index=True), about)
    attacks = {f"check:{attack.label}": attack for attack in escalated(protocol, marks)}
    more, broken, errors = _escalate(subject, recipe, known, attacks, predicted, certified, left)
    off = not recipe.diagnostics and not isinstance(subject.queried, Smoothed)
    finished = left() > 0 or not (attacks or transfer)
    return DiagnosisResult(said, [verdicts.UNDIAGNOSED] if off else marks, new + more, breaches + broken, failed + errors, finished)


def _diagnosed(
    subject: Subject, recipe: EvalRecipe, known: Record, certified: Tensor, transfer: Transfer | None
) -> Sequence[Diagnosis]:
    """Every diagnosis at the eps that says most; none where none is due."""
    if not recipe.diagnostics or isinstance(subject.queried, Smoothed):
        return []
    box = known.about.box
    eps = most_informative_eps(known)
    key = {"job": "diagnose", "norm": recipe.norm, "box": box, "eps": eps, "table": verdicts.digest(known.table)}
    key |= {} if transfer is None else {"twin": transfer.weights, "twin_answers": transfer.answers}
    every = torch.arange(len(subject.split), device=subject.device)

    def work() -> Part:
        split, found = subject.split, _found(known, subject)
        done = diagnose(
            subject.queried,
            split.x,
            split.y,
            split.index,
            norm=recipe.norm,
            box=box,
            eps=eps,
            found=found,
            closed=certified >= eps,
            twin=None if transfer is None else transfer.twin,
            images=QUICK if recipe.effort == "quick" else 64,
            seed=recipe.seed,
        )
        empty = known.table.iloc[:0][COLUMNS]
        weights = transfer.weights if transfer else None
        named = tuple(replace(one, eps=eps, twin=weights if one.name == "transfer" else None) for one in done)
        return Part(empty, Noticed(diagnostics=named))

    return subject.part(key, every, work).noticed.diagnostics


def most_informative_eps(known: Record) -> float:
    """The eps at which robust accuracy is nearest to half of clean accuracy: there most could still be wrong either way.

    The largest of several (where attacks fail altogether, every eps is as far away).
    """
    gaps = {}
    for eps in known.about.epsilons:
        states = verdicts.states(known, eps)["state"]
        standing, right = states.isin(["certified", "survived", "untested"]).sum(), (states != "wrong").sum()
        gaps[eps] = abs(2 * int(standing) - int(right))
    return min(gaps, key=lambda eps: (gaps[eps], -eps))


def _found(known: Record, subject: Subject) -> dict[str, Tensor]:
    """By method, each image's distance to the nearest image it broke, inf where none."""
    norm, table = known.about.norm, known.table
    falls = table[counted(table, norm, known.about.box)]
    where = {index: row for row, index in enumerate(subject.split.index.tolist())}
    found = {}
    for method, rows in falls.groupby("method"):
        nearest = rows.groupby("index")[f"distance_{norm}"].min()
        distance = torch.full((len(where),), torch.inf, dtype=torch.float64)
        distance[[where[int(index)] for index in nearest.index]] = torch.tensor(nearest.to_numpy(dtype=float))
        found[str(method)] = distance.to(subject.device)
    return found


def _escalate(
    subject: Subject,
    recipe: EvalRecipe,
    known: Record,
    attacks: Mapping[str, Attack],
    predicted: Tensor,
    certified: Tensor,
    left: Callable[[], float],
) -> tuple[list[pd.DataFrame], list[Breach], list[str]]:
    new: list[pd.DataFrame] = []
    breaches: list[Breach] = []
    failed: list[str] = []
    withstood: set[int] = set()
    indices, input_digests = subject.split.index.tolist(), subject.input_digests
    for eps in sorted({eps for eps in known.about.epsilons if eps > 0 and attacks}, reverse=True):
        for label, attack in attacks.items():
            states = verdicts.states(Record(pd.concat([known.table, *new], ignore_index=True), known.about), eps)["state"]
            still = [row for row, index in enumerate(indices) if states[index] == "survived" and index not in withstood]
            aimed = attack.aimed(norm=recipe.norm, eps=eps, seed=recipe.seed)
            for block in torch.tensor(still, dtype=torch.int64, device=subject.device).split(recipe.block):
                if len(block) and left() > 0:
                    done = run_attack(subject, aimed, block, predicted, input_digests, certified[block], label)
                    new.append(done.table)
                    breaches += done.noticed.breaches
                    failed += [line for line in done.noticed.failed if line not in failed]
        states = verdicts.states(Record(pd.concat([known.table, *new], ignore_index=True), known.about), eps)["state"]
        withstood |= set(states.index[states == "survived"])
    return new, breaches, failed
