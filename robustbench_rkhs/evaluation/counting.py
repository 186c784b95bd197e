"""Counting adversarial examples: projected into ball and box, measured, confirmed by a second query, stored as rows."""

import sys
import time
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.base import Attacked
from robustbench_rkhs.attacks.counted import answered, count
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.evaluation.breaches import believed, replay
from robustbench_rkhs.evaluation.halving import out_of_memory
from robustbench_rkhs.evaluation.jobs import Job, divisible
from robustbench_rkhs.evaluation.own_method import checked_attacked, fenced
from robustbench_rkhs.evaluation.predictions import counting
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime import clock
from robustbench_rkhs.verdicts import Kept, Noticed, Part

AGAIN = 2
"""How often an image is attacked again if a second query did not confirm its adversarial example."""


def attack_images(subject: Subject, job: Job) -> Part:
    """Attack the images of a job and count the broken ones: project into ball and box, measure in float64, and query again.

    An image broken within its certified radius is a breach, replayed in float64 and noted. An attack that fails with an error
    leaves rows with the error; they count neither as broken nor as survived. The same holds for `unconfirmed` rows: the attack
    stopped early at an adversarial example that further queries did not confirm, in AGAIN more runs. `timeout`: the time ran out.
    """
    found = counted(subject, job)
    rows = subject.rows(subject.positions(job.index), job.predicted, settings=job.settings, **found.columns)
    return Part(rows, found.noticed, found.kept)


def given_up(subject: Subject, job: Job, why: str) -> Part:
    """The rows of an attack that was not computed: errors, as of one that failed."""
    own = {"kind": "attack", "method": job.label, "norm": job.norm, "box": job.box, "state_reason": "error"}
    budgets = [eps if eps < float("inf") else float("nan") for eps in job.budgets]
    rows = subject.rows(subject.positions(job.index), job.predicted, settings=job.settings, eps=budgets, radius=float("inf"), **own)
    return Part(rows, Noticed(failed=(why,)))


class Count(NamedTuple):
    """Columns of an attack's rows, with notes."""

    columns: dict[str, Any]
    noticed: Noticed
    kept: Kept | None
    """The adversarial images, if wanted."""


class Attempt(NamedTuple):
    """One run of an attack: the images it returned, projected into ball and box, with the model's predictions."""

    inside: Tensor
    said: Tensor
    unconfirmed: Tensor
    """Images that the attack broke, but that the model classifies correctly when queried again."""
    left: Tensor
    """Images for which it returned a point outside box or ball."""
    forwards: Tensor
    backwards: Tensor
    error: str
    """The error, if it failed."""
    finished: bool
    """False if the time ran out."""


def counted(subject: Subject, job: Job) -> Count:
    """The results of an attack on these images, each within its own budget.

    Images whose adversarial example is not confirmed are attacked again, by `attack.again`, up to AGAIN times.
    """
    attack, label = job.method, job.label
    assert isinstance(attack, Attack)
    positions, device = subject.positions(job.index), subject.device
    budgets = torch.tensor(job.budgets, dtype=torch.float64, device=device)
    certified = torch.tensor(job.certified or [-1.0] * len(positions), dtype=torch.float64, device=device)
    predicted = torch.tensor(job.predicted, dtype=torch.int64, device=device)
    x, y, started = subject.split.x[positions], subject.split.y[positions], time.perf_counter()
    inside, said, unconfirmed, left, forwards, backwards, error, finished = attempted(
        subject, attack, positions, predicted, budgets
    )
    errors = [error] if error else []
    for number in range(1, AGAIN + 1):
        rows = unconfirmed.nonzero().flatten()
        if len(rows):
            more = attempted(subject, attack.again(number), positions[rows], predicted[rows], budgets[rows])
            inside[rows], said[rows], unconfirmed[rows] = more.inside, more.said, more.unconfirmed | bool(more.error)
            left[rows] |= more.left
            forwards[rows] += more.forwards
            backwards[rows] += more.backwards
            finished &= more.finished
            errors += [more.error] if more.error else []
    broken = said != y
    if isinstance(subject.queried, Smoothed):
        inside, broken = believed(subject.queried, attack, x, inside, y, certified, broken, budgets)
        said = said if not subject.images else answered(counting(subject.queried), inside)
    found = {norm: torch.where(broken, distances(x, inside, norm), torch.nan) for norm in ("l2", "linf")}
    radius = torch.where(broken, found[attack.norm], torch.inf)
    reasons = ["error" if error else "unconfirmed" if one else "" for one in unconfirmed.tolist()]
    if not finished:  # the nearest example, or the survival, is not known yet
        final = torch.zeros_like(broken) if attack.minimal_norm else broken
        reasons = [why or ("" if sure else "timeout") for why, sure in zip(reasons, final.tolist(), strict=True)]
    columns = {
        "norm": attack.norm,
        "box": attack.box,
        "kind": "attack",
        "method": label,
        "eps": torch.where(budgets.isfinite(), budgets, torch.nan).cpu().numpy(),
        "state_reason": reasons,
        "radius": radius.cpu().numpy(),
        "distance_l2": found["l2"].cpu().numpy(),
        "distance_linf": found["linf"].cpu().numpy(),
        "forwards": forwards.cpu().numpy(),
        "backwards": backwards.cpu().numpy(),
        "seconds": (time.perf_counter() - started) / max(len(x), 1),
        "arithmetic": f"{str(x.dtype).removeprefix('torch.')} on {torch.device(subject.device).type}",
    }
    kept = None if not subject.images else Kept(inside[broken].cpu().numpy(), said[broken].cpu().numpy())
    astray = subject.split.index[positions][left].tolist()
    noticed = Noticed(
        breaches=tuple(replay(subject, positions, inside, y, radius, certified, label)),
        outside={label: tuple(astray)} if astray else {},
        failed=tuple(f"attack {label} failed: {words}" for words in dict.fromkeys(errors)),
    )
    return Count(columns, noticed, kept)


def attempted(subject: Subject, attack: Attack, positions: Tensor, predicted: Tensor, budgets: Tensor) -> Attempt:
    """One run of the attack on these images; an error of the attack is recorded as text and leaves the images unchanged.

    If a clock runs, the images that the attack changed are still queried again after its end; unchanged images are not.
    """
    x, y = subject.split.x[positions], subject.split.y[positions]
    keys, failed = subject.split.index[positions], ""
    try:
        with redirect_stdout(sys.stderr), fenced(attack, subject.queried):  # libraries print; a command's stdout may be JSON
            given = (budgets,) if isinstance(attack, EngineAttack) else ()
            attacked = checked_attacked(attack(subject.queried, x, y, keys, *given), x)
    except UserError:
        raise
    except Exception as error:  # an error of a library becomes a row and does not end the evaluation
        if out_of_memory(error) and len(x) > 1 and divisible(attack):
            raise  # fewer at once are tried
        nothing = torch.zeros(len(x), dtype=torch.int64)
        attacked = Attacked(x, nothing, nothing)
        failed = cause(error)
    moved = (attacked.images != x).flatten(1).any(1) if clock.left() < torch.inf else torch.ones_like(y, dtype=torch.bool)
    inside, said = x.clone(), predicted.clone()
    with clock.unlimited():
        asked = (counting(subject.queried), x[moved], attacked.images[moved])
        inside[moved], said[moved], _ = count(*asked, norm=attack.norm, box=attack.box, eps=budgets[moved])
    unconfirmed = torch.zeros_like(said, dtype=torch.bool) if attacked.broken is None else attacked.broken & (said == y)
    left = outside(x, attacked.images, attack, budgets)
    return Attempt(inside, said, unconfirmed, left, attacked.forwards + 1, attacked.backwards.clone(), failed, attacked.finished)


def outside(x: Tensor, images: Tensor, attack: Attack, budgets: Tensor, slack: float = 1e-6) -> Tensor:
    """Which returned images are not finite, or lie outside the box or their ball by more than the tolerance."""
    flat = images.flatten(1)
    left = ~flat.isfinite().all(1)
    if attack.box == "unit" and flat.shape[1]:
        left |= ~((flat.double().amin(1) >= -slack) & (flat.double().amax(1) <= 1 + slack))
    return left | ~(distances(x, images, attack.norm) <= budgets + slack)
