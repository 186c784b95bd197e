"""What makes an SDP-CROWN radius re-checkable: slopes, multipliers and couplings, where it takes them part by part."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.bounds import margins_of, opened
from robustbench_rkhs.certificates.coupled import Effort, coupled_rows
from robustbench_rkhs.certificates.leaves import SPARE, leaves_of
from robustbench_rkhs.certificates.relaxation import twin
from robustbench_rkhs.certificates.sdp_crown import AIM, NEAR, SdpCrownCertificate, Tilted
from robustbench_rkhs.certificates.stored import Stored, coupled, joined, plain, positive
from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.balls import ball_trace, balls_of
from robustbench_rkhs.relaxations.branching import Leaf
from robustbench_rkhs.relaxations.full_crown import KINKS
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.lagrangian import Ball
from robustbench_rkhs.relaxations.rows import doubled, kinks_of, started, valued
from robustbench_rkhs.runtime.clock import ask

SMALLER = (1.0, 0.95, 0.9, 0.8, 0.65, 0.5, 0.3)
"""Shares of a radius that are tried in turn: intervals or branching may have been needed for the whole of it."""

KINDS = ("balls", "coupled", "parts", "coupled_parts")
"""What proves rows: balls alone, balls and couplings, and both with intervals, part by part (`leaves`)."""


class Witness(NamedTuple):
    """What is stored for every image with a radius and every other class."""

    radius: Float64[Tensor, " batch"]
    """What balls and couplings prove, at most the radius asked for."""
    stored: dict[str, Stored]
    """By KINDS."""
    left_out: int
    """Images of which parts would have proved more, had the file had room."""


def witness(
    method: SdpCrownCertificate,
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, " batch"],
    radius: Float64[Tensor, " batch"],
    room: int = 2**28,
) -> Witness:
    """The witness for these l2 radii; proofs in parts take at most `room` bytes together. Cost: up to `method.steps` gradient
    steps, up to `method.couplings` with couplings, and as many parts as `method.domains`, for each image and share of its radius.
    """
    with torch.inference_mode(False), torch.no_grad():
        plain = margins_of(opened(model, tuple(x.shape[1:])))
        ways = Tilted(method, plain, twin(plain, torch.device("cpu")), x.detach().cpu().double(), y.detach().cpu())
        found, kept, left_out = torch.zeros_like(radius), {kind: list[Stored]() for kind in KINDS}, 0
        for at in (radius > 0).nonzero().flatten().tolist():
            small = True
            for share in SMALLER:
                ask()
                tried = radius[at] * share
                proved, parts = _proved(ways, method, at, tried), ""
                if proved is None and small:
                    proved, parts = leaves_of(ways, method, at, tried), "parts"
                    small = proved is None or proved.bytes <= room
                    left_out += not small
                if proved is not None and (small or not parts):
                    room -= proved.bytes if parts else 0
                    found[at] = tried
                    kept["_".join(filter(None, ("coupled" if proved.pushes else "", parts))) or "balls"].append(proved)
                    break
    return Witness(found, {kind: joined(some) for kind, some in kept.items()}, left_out)


def _proved(ways: Tilted, method: SdpCrownCertificate, at: int, radius: Tensor) -> Stored | None:
    """What proves all other classes of one image without intervals: balls, or else balls and couplings."""
    part, radii = torch.tensor([at]), radius[None]
    balls = balls_of(ways.model, ways.x[part], radii, ways.reach)
    found = ball_trace(ways.model, ways.around(ways.x[part], radii), balls)
    others = [other for other in range(found.after.center.shape[1]) if other != int(ways.y[at])]
    rows = ways.rows(found, balls, torch.tensor([(0, other) for other in others]), part)
    rows = rows._replace(steps=list(_within(rows.steps, {})))
    gap, tilts = ways.differences(part)[0, others], started(rows)
    tilts = optimised(rows, tilts, AIM * gap, Search(method.steps, method.rate))
    value = valued(rows, doubled(tilts), True)[0]
    named, paths = torch.tensor([(at, other) for other in others]), [step.path for step in kinks_of(rows.steps)]
    if not positive(tilts):
        return None
    if bool((value > 0).all()):
        return plain(named, paths, [Leaf((), tilts)], range(len(others)))
    chain = ways.chain(part[0]) if method.couplings and bool((value > -NEAR * gap).all()) else None
    if chain is None:
        return None
    rows = rows._replace(steps=list(_within(rows.steps, rows.balls)))
    effort = Effort(method.couplings, method.work, method.seconds)
    choice, curved, value = coupled_rows(rows, tilts, AIM * gap, effort, chain)
    if not bool((value > SPARE * gap).all()):
        return None
    return coupled(plain(named, paths, [Leaf((), choice.tilts)], range(len(others))), choice, curved, paths)


def _within(steps: list[Step], balls: dict[str, Ball]) -> Iterator[Step]:
    """The steps, where nothing is known of a kink's inputs but the ball: intervals as wide as it, or infinite ones without."""
    for step in steps:
        if isinstance(step.module, KINKS):
            region = step.before
            wide = torch.full_like(region.radius, torch.inf)
            if step.path in balls:
                ball = balls[step.path]
                wide = ball.radius.view(-1, *[1] * (wide.dim() - 1)).expand_as(wide).clone()
                region = region._replace(center=ball.center)
            yield step._replace(before=region._replace(radius=wide))
        else:
            yield step._replace(branches=tuple(list(_within(branch, balls)) for branch in step.branches))
