"""Breaches: re-tests for smoothed models, and the replay of each breach in float64."""

import copy

import torch
from torch import Tensor

from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.attacks.ball import distances, per_image
from robustbench_rkhs.attacks.counted import answered
from robustbench_rkhs.evaluation.predictions import counting
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.verdicts import Breach


def believed(
    model: Smoothed,
    attack: Attack,
    x: Tensor,
    inside: Tensor,
    y: Tensor,
    certified: Tensor,
    broken: Tensor,
    budgets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Adversarial examples of a smoothed model, re-tested on the boundary of the certified ball.

    Attacks stop near the decision boundary, where a vote of finitely many samples proves nothing. A certificate covers its
    whole ball: the label is tested on its boundary, in the direction of the attack, and the claim is broken if the label is
    proved to lose the vote there. A vote inside the ball without that proof does not count.
    """
    away = distances(x, inside, attack.norm)
    claimed = (broken & (certified.to(away) > 0)).nonzero().flatten()
    if not len(claimed):
        return inside, broken
    reach = torch.minimum(certified.to(away), budgets.to(away))[claimed]
    stretch = reach / away[claimed].clamp_min(1e-12) * (1 - 1e-6)
    edge = x[claimed] + (inside[claimed] - x[claimed]) * per_image(stretch, x).to(x)
    edge = edge.clamp(0, 1) if attack.box == "unit" else edge
    lost = model.loses(edge, y[claimed])
    inside, broken = inside.clone(), broken.clone()
    inside[claimed[lost]] = edge[lost]
    broken[claimed[~lost & (away[claimed] <= reach)]] = False
    return inside, broken


def replay(
    subject: Subject, positions: Tensor, inside: Tensor, y: Tensor, radius: Tensor, certified: Tensor, label: str
) -> list[Breach]:
    """Breaches among these images, each replayed in float64.

    `proof error`: the float64 network errs too, so the certificate is false; `arithmetic`: only the evaluated one errs.
    """
    hit = (radius <= certified.to(radius)).nonzero().flatten()
    if not len(hit):
        return []
    twin = counting(copy.deepcopy(subject.model).cpu().double())
    wrong = answered(twin, inside[hit].cpu().double()) != y[hit].cpu()
    return [
        Breach(
            index=int(subject.split.index[positions[i]]),
            attack=label,
            distance=float(radius[i]),
            certified=float(certified[i]),
            cause="proof error" if bad else "arithmetic",
        )
        for i, bad in zip(hit.tolist(), wrong.tolist(), strict=True)
    ]
