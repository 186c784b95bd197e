"""What makes an SDP-CROWN radius re-checkable: slopes, multipliers and couplings with which l2 balls alone prove it."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.bounds import margins_of, opened
from robustbench_rkhs.certificates.relaxation import twin
from robustbench_rkhs.certificates.sdp_crown import AIM, NEAR, SdpCrownCertificate, Tilted
from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.balls import ball_trace, balls_of
from robustbench_rkhs.relaxations.coupled_ascent import Choice, begun, coupled
from robustbench_rkhs.relaxations.couplings import Chain, bounded, curvatures
from robustbench_rkhs.relaxations.full_crown import KINKS
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.lagrangian import Ball
from robustbench_rkhs.relaxations.rows import Rows, doubled, kinks_of, started, valued
from robustbench_rkhs.runtime.clock import Clock, ask, limited

SMALLER = (1.0, 0.95, 0.9, 0.8, 0.65, 0.5, 0.3)
"""Shares of a radius that are tried in turn: intervals or branching may have been needed for the whole of it."""
SPARE = 1e-6
"""Margin of a proof with couplings, relative to the difference of logits: its norms are proved again, a little larger."""
LEAST = 1e-20
"""Smallest multiplier or curvature that is written."""


class Stored(NamedTuple):
    """Rows of some images, as they are written: float32 but for the norms."""

    rows: Int[Tensor, "rows 2"]
    """Image and other class of each row."""
    slopes: list[Tensor]
    """(rows, values) for each kink of the network, in order."""
    multipliers: Tensor
    """(rows, kinks)"""
    pushes: list[Tensor]
    """(rows, values) for each kink; none where balls alone prove the rows."""
    scales: list[Tensor]
    """The same for each kink but the last."""
    norms: Tensor
    """(rows, kinks), float64: of each link (`couplings.curvatures`)."""


class Witness(NamedTuple):
    """What is stored for every image with a radius and every other class."""

    radius: Float64[Tensor, " batch"]
    """What balls and couplings prove, at most the radius asked for."""
    balls: Stored
    coupled: Stored


def witness(
    method: SdpCrownCertificate, model: nn.Module, x: Tensor, y: Int[Tensor, " batch"], radius: Float64[Tensor, " batch"]
) -> Witness:
    """The witness for these l2 radii. Cost: up to `method.steps` gradient steps, and up to `method.couplings` with couplings, for
    each image and share of its radius."""
    with torch.inference_mode(False), torch.no_grad():
        plain = margins_of(opened(model, tuple(x.shape[1:])))
        ways = Tilted(method, plain, twin(plain, torch.device("cpu")), x.detach().cpu().double(), y.detach().cpu())
        found, balls, chains = torch.zeros_like(radius), list[Stored](), list[Stored]()
        for at in (radius > 0).nonzero().flatten().tolist():
            for share in SMALLER:
                ask()
                tried = radius[at] * share
                proved = _proved(ways, method, at, tried)
                if proved is not None:
                    found[at] = tried
                    (chains if proved.pushes else balls).append(proved)
                    break
    return Witness(found, _joined(balls), _joined(chains))


def _joined(parts: list[Stored]) -> Stored:
    if not parts:
        return Stored(torch.zeros(0, 2, dtype=torch.int64), [], torch.zeros(0, 0), [], [], torch.zeros(0, 0))
    slopes, pushes, scales = (
        [torch.cat(one) for one in zip(*several, strict=True)]
        for several in ([one.slopes for one in parts], [one.pushes for one in parts], [one.scales for one in parts])
    )
    rows, multipliers = torch.cat([one.rows for one in parts]), torch.cat([one.multipliers for one in parts])
    return Stored(rows, slopes, multipliers, pushes, scales, torch.cat([one.norms for one in parts]))


def _proved(ways: Tilted, method: SdpCrownCertificate, at: int, radius: Tensor) -> Stored | None:
    """What proves all other classes of one image without intervals: balls, or else balls and couplings."""
    part, radii = torch.tensor([at]), radius[None]
    balls = balls_of(ways.model, ways.x[part], radii, ways.reach)
    found = ball_trace(ways.model, ways.around(ways.x[part], radii), balls)
    others = [other for other in range(found.after.center.shape[1]) if other != int(ways.y[at])]
    rows = ways.rows(found, balls, torch.tensor([(0, other) for other in others]), part)
    rows = rows._replace(steps=list(_within(rows.steps, {})))
    gap, tilts = ways.gaps(part)[0, others], started(rows)
    tilts = optimised(rows, tilts, AIM * gap, Search(method.steps, method.rate))
    value = valued(rows, doubled(tilts), True)[0]
    named = torch.tensor([(at, other) for other in others])
    positive = all(bool((one.multiplier > 0).all()) for one in tilts.values())
    if bool((value > 0).all()) and positive:
        order = [tilts[step.path] for step in kinks_of(rows.steps)]
        slopes, multipliers = [one.slope.flatten(1) for one in order], torch.cat([one.multiplier for one in order], 1)
        return Stored(named, slopes, multipliers, [], [], torch.zeros(len(others), 0, dtype=torch.float64))
    chain = ways.chain(part[0]) if method.couplings and positive and bool((value > -NEAR * gap).all()) else None
    return None if chain is None else _coupled(rows, Choice(tilts, {}), chain, method, gap, named)


def _coupled(rows: Rows, choice: Choice, chain: Chain, method: SdpCrownCertificate, gap: Tensor, named: Tensor) -> Stored | None:
    rows = rows._replace(steps=list(_within(rows.steps, rows.balls)))
    with limited(Clock(method.seconds)):
        choice = coupled(rows, begun(choice.tilts, chain), AIM * gap, Search(method.couplings, 0.1), chain)
    for tilt in choice.tilts.values():
        tilt.multiplier.clamp_min_(LEAST)
    for coupling in choice.couplings.values():
        coupling.push.clamp_min_(LEAST)
        coupling.scale.clamp_min_(LEAST)
    twice = choice.double()
    curved = curvatures(twice.couplings, chain)
    if not bool((bounded(rows, twice.tilts, curved, chain) > SPARE * gap).all()):
        return None
    paths = [link.path for link in chain.links]
    couplings = [choice.couplings[path] for path in paths]
    squares = [curved.least, *(curved.bowls[path][0][:, 0] / twice.couplings[path].scale[:, 0].square() for path in paths[:-1])]
    return Stored(
        named,
        [choice.tilts[path].slope.flatten(1) for path in paths],
        torch.cat([choice.tilts[path].multiplier for path in paths], 1),
        [one.push for one in couplings],
        [one.scale for one in couplings[:-1]],
        torch.stack(squares, 1).sqrt(),
    )


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
