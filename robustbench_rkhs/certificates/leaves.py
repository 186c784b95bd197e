"""What makes an SDP-CROWN radius re-checkable that needs intervals or branch and bound: every part's own slopes and multipliers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_rkhs.certificates.coupled import Effort, coupled_rows
from robustbench_rkhs.certificates.sdp_crown import AIM, CLOSE, NEAR, SdpCrownCertificate, Tilted
from robustbench_rkhs.certificates.stored import Stored, clamped, coupled, plain, positive
from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.balls import ball_trace, balls_of
from robustbench_rkhs.relaxations.branching import Leaf, branched
from robustbench_rkhs.relaxations.coupled_ascent import Choice
from robustbench_rkhs.relaxations.couplings import Chain, Curved
from robustbench_rkhs.relaxations.full_crown import KINKS, keep, tighten
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rows import Rows, doubled, kinks_of, started, valued
from robustbench_rkhs.runtime.allowance import Allowance
from robustbench_rkhs.runtime.clock import Clock, OutOfTime, ask, limited

SPARE = 1e-6
"""Every part is proved with this margin, relative to the difference of logits: intervals and norms are computed anew, with other
roundings."""
FEW = 512
"""Intervals before a kink are tightened by rows where at most so many of an image's values are uncertain: the verifier does so."""


def leaves_of(ways: Tilted, method: SdpCrownCertificate, at: int, radius: Tensor) -> Stored | None:
    """What proves all other classes of one image in parts; None where nothing does. Rows that need no splits are one part."""
    part, radii = torch.tensor([at]), radius[None]
    balls = balls_of(ways.model, ways.x[part], radii, ways.reach)
    found = ball_trace(ways.model, ways.around(ways.x[part], radii), balls, _few)
    others = [other for other in range(found.after.center.shape[1]) if other != int(ways.y[at])]
    rows, gap = ways.rows(found, balls, torch.tensor([(0, other) for other in others]), part), ways.differences(part)[0, others]
    rows = rows._replace(lines=rows.lines._replace(offsets=rows.lines.offsets - SPARE * gap[:, None]))
    tilts = optimised(rows, started(rows), AIM * gap, Search(method.steps, method.rate))
    choice, paths, named = (
        Choice(tilts, {}),
        [step.path for step in kinks_of(rows.steps)],
        torch.tensor([(at, one) for one in others]),
    )
    if not positive(tilts) or not paths:
        return None
    chain, curved, value = ways.chain(part[0]) if method.couplings else None, None, valued(rows, doubled(tilts), True)[0]
    if bool((value <= 0).any()):
        if bool((value < -NEAR * gap).any()):
            return None
        if chain is not None:
            effort = Effort(method.couplings, method.work, method.seconds)
            closer, bent, raised = coupled_rows(rows, tilts, AIM * gap, effort, chain)
            if bool((raised >= -CLOSE * gap).all()):
                choice, curved, value = closer, bent, raised
    parts = _parts(rows, choice, value, AIM * gap, method, chain if curved is not None else None, curved)
    if parts is None:
        return None
    leaves, part_of = [leaf for some in parts for leaf in some], [row for row, some in enumerate(parts) for _ in some]
    found_ = plain(named, paths, leaves, part_of)
    return found_ if curved is None else coupled(found_, choice, curved, paths)


def _parts(
    rows: Rows, choice: Choice, value: Tensor, aim: Tensor, method: SdpCrownCertificate, chain: Chain | None, curved: Curved | None
) -> list[list[Leaf]] | None:
    """The parts of each row, the hardest rows first; None where one is not proved."""
    found: dict[int, list[Leaf]] = {}
    try:
        with limited(Allowance(method.work)), limited(Clock(method.seconds)):
            for at in value.argsort().tolist():
                one = torch.tensor([at])
                found[at] = []
                if value[at] > 0:
                    found[at].append(Leaf((), choice.of(one).tilts))
                    continue
                curves = None if curved is None else curved.of(one)
                whole, most = (rows.of(one), choice.of(one), aim[one]), method.domains
                if not most or not branched(*whole, most, chain, curves, found[at]).proved:
                    return None
                for leaf in found[at]:
                    clamped(Choice(leaf.tilts, {}))
    except OutOfTime:
        ask()
        return None
    return [found[at] for at in range(len(value))]


def _few(module: nn.Module, steps: Sequence[Step], region: Region) -> Region:
    """A hook of `trace`: linear bounds where few values are uncertain."""
    unsure = (region.lower < 0) & (region.upper > 0)
    worth = isinstance(module, KINKS) and int(unsure.flatten(1).sum(1).max()) <= FEW
    return (tighten if worth else keep)(module, list(steps), region)
