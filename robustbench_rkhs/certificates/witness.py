"""What makes an SDP-CROWN radius re-checkable: slopes and multipliers with which l2 balls alone prove it."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.bounds import margins_of, opened
from robustbench_rkhs.certificates.relaxation import twin
from robustbench_rkhs.certificates.sdp_crown import AIM, SdpCrownCertificate, Tilted
from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.balls import ball_trace, balls_of
from robustbench_rkhs.relaxations.full_crown import KINKS
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.rows import Tilts, doubled, kinks_of, started, valued
from robustbench_rkhs.runtime.clock import ask

SMALLER = (1.0, 0.95, 0.9, 0.8, 0.65, 0.5, 0.3)
"""Shares of a radius that are tried in turn: intervals may have been needed for the whole of it."""


class Witness(NamedTuple):
    """Slopes and multipliers for every image with a radius and every other class."""

    radius: Float64[Tensor, " batch"]
    """What balls alone prove, at most the radius asked for."""
    rows: Int[Tensor, "rows 2"]
    """Image and other class of each row."""
    slopes: list[Tensor]
    """(rows, values) for each kink of the network, in order, float32."""
    multipliers: Tensor
    """(rows, kinks), float32."""


def witness(
    method: SdpCrownCertificate, model: nn.Module, x: Tensor, y: Int[Tensor, " batch"], radius: Float64[Tensor, " batch"]
) -> Witness:
    """The witness for these l2 radii. Cost: up to `method.steps` gradient steps for each image and share of its radius."""
    with torch.inference_mode(False), torch.no_grad():
        plain = margins_of(opened(model, tuple(x.shape[1:])))
        ways = Tilted(method, plain, twin(plain, torch.device("cpu")), x.detach().cpu().double(), y.detach().cpu())
        found, kept = torch.zeros_like(radius), []
        for at in (radius > 0).nonzero().flatten().tolist():
            for share in SMALLER:
                ask()
                tried = radius[at] * share
                tilts = _proved(ways, method, at, tried)
                if tilts is not None:
                    found[at] = tried
                    kept.append((at, tilts))
                    break
    classes = ways.model(ways.x[:1]).shape[1]
    rows = torch.tensor([(at, other) for at, _ in kept for other in range(classes) if other != int(y[at])]).view(-1, 2)
    paths = [list(tilts) for _, tilts in kept[:1]]
    slopes = [torch.cat([tilts[path].slope.flatten(1) for _, tilts in kept]) for path in (paths[0] if paths else [])]
    multipliers = [torch.cat([tilts[path].multiplier for _, tilts in kept]) for path in (paths[0] if paths else [])]
    return Witness(found, rows, slopes, torch.cat(multipliers, 1) if multipliers else torch.zeros(0, 0))


def _proved(ways: Tilted, method: SdpCrownCertificate, at: int, radius: Tensor) -> Tilts | None:
    """Slopes and multipliers, in the order of the network, that prove all other classes of one image without intervals."""
    part, radii = torch.tensor([at]), radius[None]
    balls = balls_of(ways.model, ways.x[part], radii, ways.reach)
    found = ball_trace(ways.model, ways.around(ways.x[part], radii), balls)
    others = [other for other in range(found.after.center.shape[1]) if other != int(ways.y[at])]
    rows = ways.rows(found, balls, torch.tensor([(0, other) for other in others]), part)
    rows = rows._replace(steps=list(_whole(rows.steps)))
    gap, tilts = ways.gaps(part)[0, others], started(rows)
    tilts = optimised(rows, tilts, AIM * gap, Search(method.steps, method.rate))
    if not bool((valued(rows, doubled(tilts), True)[0] > 0).all()) or not all(
        bool((one.multiplier > 0).all()) for one in tilts.values()
    ):
        return None
    return {step.path: tilts[step.path] for step in kinks_of(rows.steps)}


def _whole(steps: list[Step]) -> Iterator[Step]:
    """The steps, where nothing is known of a kink's inputs but the ball."""
    for step in steps:
        if isinstance(step.module, KINKS):
            region = step.before
            yield step._replace(before=region._replace(radius=torch.full_like(region.radius, torch.inf)))
        else:
            yield step._replace(branches=tuple(list(_whole(branch)) for branch in step.branches))
