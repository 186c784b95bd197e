"""Counting adversarial examples: projected into ball and box, measured, confirmed by a second query, stored as rows."""

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.base import Attacked
from robustbench_rkhs.attacks.counted import answered, count
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.evaluation.breaches import believed, replay
from robustbench_rkhs.evaluation.cache_key import digest_of, settings_of
from robustbench_rkhs.evaluation.own_method import checked_attacked, fenced
from robustbench_rkhs.evaluation.predictions import counting
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.verdicts import Kept, Noticed, Part

AGAIN = 2
"""How often an image is attacked again where a second query did not confirm the adversarial example."""


def run_attack(
    subject: Subject,
    attack: Attack,
    positions: Tensor,
    predicted: Tensor,
    input_digests: list[str],
    certified: Tensor,
    label: str = "",
    budgets: Tensor | None = None,
    blocks: np.ndarray | None = None,
) -> Part:
    """Attack these images and count the broken ones: projected into ball and box, measured in float64, confirmed by a second query.

    `certified`: each image's largest certified radius; one broken within it is a breach, replayed in float64 and noted.
    `budgets`: each image's own eps in place of the attack's, for the attacks of our engine; their rows are kept image by image, as
    their outcome for an image depends on no other image.
    `blocks`: which block each image belongs to, where workers may have a block each.
    An attack that fails with an error leaves rows that say so; they count neither as broken nor as survived. Nor do rows that say
    `denied`: the attack spared the image what was left of it, as it saw it fall, and the model denied that, AGAIN times more.
    """
    label = label or attack.label
    settings = settings_of(attack, frozenset({"eps", "seed", "norm"}))
    key = {"job": "attack", "method": label, "settings": settings, "norm": attack.norm, "box": attack.box}
    if budgets is None:
        value = torch.inf if attack.eps is None else attack.eps
        budgets = torch.full((len(positions),), value, dtype=torch.float64, device=positions.device)
    budgets = budgets.to(positions.device, torch.float64)

    def rows(some: Tensor, count: Count) -> Part:
        table = subject.rows(positions[some], predicted, input_digests, settings=settings, **count.columns)
        return Part(table, count.noticed, count.kept)

    def here(some: Tensor) -> Part:
        return rows(some, counted(subject, attack, positions[some], certified[some], budgets[some], label))

    def shared(some: Tensor) -> list[Part]:
        if subject.workers is None or blocks is None:
            return [here(some)]
        given = (attack, positions.numpy(), certified.numpy(), budgets.numpy(), label)
        queried = [some[blocks[some.numpy()] == block] for block in np.unique(blocks[some.numpy()])]
        return [rows(block, count) for block, count in subject.workers.each(queried, *given)]

    if isinstance(subject.queried, Smoothed):  # what is believed of a vote depends on what is claimed of it
        key["certified"] = digest_of(certified.tolist())
    whole = torch.arange(len(positions), device=positions.device)
    if isinstance(attack, EngineAttack):
        done = subject.each(key, positions, torch.where(budgets.isfinite(), budgets, -1.0).tolist(), shared)
    else:
        done = subject.part(key | {"eps": attack.eps}, positions, lambda: here(whole))
    broken = int((done.table["radius"].to_numpy() <= certified.cpu().numpy()).sum())
    # rows kept from before there was this certificate: the replay needs the images again
    return done if len(done.noticed.breaches) >= broken else here(whole)


class Count(NamedTuple):
    """Columns of an attack's rows, and what was noticed beside them."""

    columns: dict[str, Any]
    noticed: Noticed
    kept: Kept | None
    """The adversarial images, where they are asked for."""


class Attempt(NamedTuple):
    """One run of an attack: what it returned, pulled inside, and what the model says to that."""

    inside: Tensor
    said: Tensor
    unconfirmed: Tensor
    """Images that the attack saw fall, and that the model gets right when it is asked again."""
    left: Tensor
    """Images for which it returned one outside box or ball."""
    forwards: Tensor
    backwards: Tensor
    error: str
    """What it ended in, where it failed."""


def counted(subject: Subject, attack: Attack, positions: Tensor, certified: Tensor, budgets: Tensor, label: str) -> Count:
    """What an attack found on these images, each within its own budget.

    Images whose adversarial example is not confirmed are attacked again, by `attack.again`, up to AGAIN times.
    """
    x, y, started = subject.split.x[positions], subject.split.y[positions], time.perf_counter()
    inside, said, unconfirmed, left, forwards, backwards, error = attempted(subject, attack, positions, budgets)
    errors = [error] if error else []
    for number in range(1, AGAIN + 1):
        rows = unconfirmed.nonzero().flatten()
        if len(rows):
            more = attempted(subject, attack.again(number), positions[rows], budgets[rows])
            inside[rows], said[rows], unconfirmed[rows] = more.inside, more.said, more.unconfirmed | bool(more.error)
            left[rows] |= more.left
            forwards[rows] += more.forwards
            backwards[rows] += more.backwards
            errors += [more.error] if more.error else []
    broken = said != y
    if isinstance(subject.queried, Smoothed):
        inside, broken = believed(subject.queried, attack, x, inside, y, certified, broken, budgets)
        said = said if subject.nearest is None else answered(counting(subject.queried), inside)
    found = {norm: torch.where(broken, distances(x, inside, norm), torch.nan) for norm in ("l2", "linf")}
    radius = torch.where(broken, found[attack.norm], torch.inf)
    columns = {
        "norm": attack.norm,
        "box": attack.box,
        "kind": "attack",
        "method": label,
        "eps": torch.where(budgets.isfinite(), budgets, torch.nan).cpu().numpy(),
        "state_reason": ["error" if error else "unconfirmed" if one else "" for one in unconfirmed.tolist()],
        "radius": radius.cpu().numpy(),
        "distance_l2": found["l2"].cpu().numpy(),
        "distance_linf": found["linf"].cpu().numpy(),
        "forwards": forwards.cpu().numpy(),
        "backwards": backwards.cpu().numpy(),
        "seconds": (time.perf_counter() - started) / max(len(x), 1),
        "arithmetic": f"{str(x.dtype).removeprefix('torch.')} on {torch.device(subject.device).type}",
    }
    kept = None if subject.nearest is None else Kept(inside[broken].cpu().numpy(), said[broken].cpu().numpy())
    astray = subject.split.index[positions][left].tolist()
    noticed = Noticed(
        breaches=tuple(replay(subject, positions, inside, y, radius, certified, label)),
        outside={label: tuple(astray)} if astray else {},
        failed=tuple(f"attack {label} failed: {words}" for words in dict.fromkeys(errors)),
    )
    return Count(columns, noticed, kept)


def attempted(subject: Subject, attack: Attack, positions: Tensor, budgets: Tensor) -> Attempt:
    """One run of the attack on these images; an error of its own is kept as words, and leaves the images as they are."""
    x, y = subject.split.x[positions], subject.split.y[positions]
    keys, failed = subject.split.index[positions], ""
    try:
        with fenced(attack, subject.queried):
            given = (budgets,) if isinstance(attack, EngineAttack) else ()
            attacked = checked_attacked(attack(subject.queried, x, y, keys, *given), x)
    except UserError:
        raise
    except Exception as error:  # a library's fault is a row, not the end of the evaluation
        nothing = torch.zeros(len(x), dtype=torch.int64)
        attacked = Attacked(x, nothing, nothing)
        failed = cause(error)
    inside, said, _ = count(counting(subject.queried), x, attacked.images, norm=attack.norm, box=attack.box, eps=budgets)
    unconfirmed = torch.zeros_like(said, dtype=torch.bool) if attacked.broken is None else attacked.broken & (said == y)
    left = outside(x, attacked.images, attack, budgets)
    return Attempt(inside, said, unconfirmed, left, attacked.forwards + 1, attacked.backwards.clone(), failed)


def share_of(
    subject: Subject, some: Tensor, attack: Attack, positions: np.ndarray, certified: np.ndarray, budgets: np.ndarray, label: str
) -> tuple[Tensor, Count]:
    """What a worker finds on its block."""
    where, proved, eps = (torch.from_numpy(one)[some] for one in (positions, certified, budgets))
    return some, counted(subject, attack, where, proved, eps, label)


def outside(x: Tensor, images: Tensor, attack: Attack, budgets: Tensor, slack: float = 1e-6) -> Tensor:
    """Which images that an attack returned are not finite, or outside its box or their balls by more than the slack."""
    flat = images.flatten(1)
    left = ~flat.isfinite().all(1)
    if attack.box == "unit" and flat.shape[1]:
        left |= ~((flat.double().amin(1) >= -slack) & (flat.double().amax(1) <= 1 + slack))
    return left | ~(distances(x, images, attack.norm) <= budgets + slack)
