"""The SDP-CROWN certificate: linear bounds from balls and intervals together, with free slopes, per image."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float64, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.certificates.boxes import Boxes, Limits
from robustbench_rkhs.certificates.counterexamples import refuted
from robustbench_rkhs.certificates.coupled import Effort, coupled_rows
from robustbench_rkhs.certificates.reach import reach
from robustbench_rkhs.certificates.relaxation import Balls, LinearCertificate
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.balls import ball_trace, balls_of
from robustbench_rkhs.relaxations.branching import branched
from robustbench_rkhs.relaxations.coupled_ascent import Choice
from robustbench_rkhs.relaxations.couplings import Chain, chain_of
from robustbench_rkhs.relaxations.full_crown import NUMBERS, Found, Tighten, every_step, keep, linear_proof, proved_trace
from robustbench_rkhs.relaxations.interval import Trace
from robustbench_rkhs.relaxations.lagrangian import Ball, Tilt
from robustbench_rkhs.relaxations.linear_bounds import Lines, margin_rows
from robustbench_rkhs.relaxations.links import Link, links
from robustbench_rkhs.relaxations.rounding import LEAST
from robustbench_rkhs.relaxations.rows import Rows, Tilts, balls_at, doubled, indexed, started, tiltable, valued
from robustbench_rkhs.relaxations.tightened import Tightened
from robustbench_rkhs.runtime.allowance import Allowance
from robustbench_rkhs.runtime.clock import Clock, OutOfTime, ask, limited

AIM = 1e-4
"""Rows are optimised until they lie this far above zero, relative to the difference of logits: float32 rounds in between."""

NEAR = 0.6
"""Couplings and branching are tried where a bound lies at most this share of the difference of logits below zero."""


CLOSE = 0.15
"""Parts are tried where the bound with couplings then lies at most this share below zero."""


class SdpCrownCertificate(LinearCertificate):
    r"""The largest ball over which linear bounds from balls and intervals keep the label's logit above every other.

    .. math:: f_y(x') - f_j(x') \ge a_j^\top x' + b_j - e_j

    As `crown`, but the lines at each kink are the Lagrangian of its interval and of the l2 ball that its inputs lie in
    (`relaxations.lagrangian`). The radius of that ball is the LipLT bound of the layers before it times eps. One slope for each
    kink, image and pair of classes, and one multiplier for each layer, image and pair, are optimised by gradient steps;
    every choice is sound. Slopes are free where the sign is known, too: that is most of the gain.
    The requested epsilons are tried first, from the smallest, each from the slopes of the last; a radius that is tried is first
    bounded with the slopes at hand. In linf there are no balls: intervals by `crown`, lines with a slope for each kink and row,
    and intervals bounded anew with optimised slopes (`certificates.boxes`). Computed in float64 with its rounding bounded (the
    search in float32), about the network as in `crown`. The bound contains those of `margin` (in
    l2), `crown` and `alpha_crown` with intervals as its special cases.
    Raises Uncertifiable, naming the layer, for a layer without bounds. Cost: for each radius tried, up to `steps` differentiated
    backward passes per pair of classes still open. Source: SDP-CROWN (arXiv 2506.06665) for the inequality of the ball alone;
    ours: one Lagrangian for ball and interval, slopes free everywhere, rounding, and any graph of certified layers.
    """

    name: Literal["sdp_crown"] = "sdp_crown"
    steps: int = Field(200, ge=0)
    """Gradient steps at most for each radius tried; at most 50 of them in linf."""
    rate: Real = Field(0.3, gt=0)
    """Step size of Adam at the start in l2; it falls to 2% of this."""
    intervals: int = Field(512, ge=0)
    """Where the bound falls short of a requested eps, it is tried again with tighter intervals, at layers with at most this many
    uncertain values."""

    couplings: int = Field(400, ge=0)
    """Where it still falls short, gradient steps of a third try with quadratic terms that couple the layers (l2, and chains of
    affine layers and ReLUs alone); where all pairs of an image come close, four times as many more."""
    domains: int = Field(2000, ge=0)
    """Branch and bound: at most this many parts of a ball for each pair of classes that still falls short of a requested eps."""
    work: Real = Field(1e12, gt=0)
    """Multiply-adds at most of the gradient steps in an image's search of couplings, and again in its branch and bound: the same
    end on any machine. Proofs of what a search found come on top: a norm for each row and layer, as long as the eigenvalues
    of a matrix of the layer's order take."""
    seconds: Real | None = Field(None, gt=0)
    """Longest time for each of these two searches; with it, what is proved depends on the machine."""

    def balls(self, model: nn.Module, twin: nn.Module, x: Tensor, y: Tensor, epsilons: Sequence[float]) -> Balls:
        if self.norm == "linf":
            return Boxes(self, Limits(self.steps, self.intervals, self.domains, self.work, self.seconds), twin, x, y, epsilons)
        return Tilted(self, model, twin, x, y, epsilons)


class Tilted(Balls):
    """l2 balls around images, and the slopes and multipliers that served last for each image and other class."""

    method: SdpCrownCertificate

    def __init__(
        self, method: SdpCrownCertificate, model: nn.Module, twin: nn.Module, x: Tensor, y: Tensor, asked: Sequence[float] = ()
    ) -> None:
        super().__init__(method, twin, x, y)
        self.asked = torch.tensor(list(asked), dtype=torch.float64, device=x.device)
        sample = proved_trace(twin, self.around(x.new_zeros(1, *x.shape[1:]), x.new_zeros(1)), False)
        held = sum(step.before.center.numel() for step in every_step(sample.steps))
        self.images = max(1, min(self.images, NUMBERS // max(self.classes * held, 1)))  # each row holds all regions of its image
        self.reach = reach(model, tuple(x.shape[1:]), sample)
        self.kept: dict[tuple[int, int], tuple[float, Tilts]] = {}
        self.links: list[Link] | None = None

    def bounded(self, part: Int[Tensor, " some"], radii: Float64[Tensor, " some"]) -> tuple[Trace, Found]:
        balls = balls_of(self.model, self.x[part], radii, self.reach)
        found, (margins, shares) = self.stage(part, radii, balls, keep)
        short = (margins.scatter(1, self.y[part][:, None], torch.inf).amin(1) <= 0) & self.right(part)
        again = (short & torch.isin(radii, self.asked)).nonzero().flatten()
        if len(again) and self.method.intervals:
            some = {path: Ball(one.center[again], one.radius[again]) for path, one in balls.items()}
            hook = Tightened(some, self.method.intervals, Search(min(50, self.method.steps), self.method.rate)).__call__
            closer, (raised, reached) = self.stage(part[again], radii[again], some, hook)
            margins[again], shares[again] = torch.maximum(margins[again], raised), torch.maximum(shares[again], reached)
            margins[again] = self.further(closer, some, part[again], margins[again], radii[again])
        return found, Found(margins, shares)

    def further(self, found: Trace, balls: dict[str, Ball], part: Tensor, margins: Tensor, radii: Tensor) -> Tensor:
        """The margins, where those that are not too far below zero are bounded by coupled layers, and on parts."""
        gaps, margins = self.differences(part), margins.clone()
        for place, y in enumerate(self.y[part].tolist()):
            short = [other for other in range(margins.shape[1]) if other != y and margins[place, other] <= 0]
            short.sort(key=lambda other: float(margins[place, other] / gaps[place, other]))
            if not short or not gaps[place, short[0]] > 0 or margins[place, short[0]] < -NEAR * gaps[place, short[0]]:
                continue  # the worst one decides
            if any((int(part[place]), other) not in self.kept for other in short):
                continue
            x, eps, unit = self.x[part[place]], float(radii[place]), self.method.box == "unit"
            if any(refuted(self.model, x, y, other, eps, self.method.norm, unit) for other in short):
                continue
            rows = self.rows(found, balls, torch.tensor([[place, other] for other in short]), part)
            tilts = [self.kept[int(part[place]), other][1] for other in short]
            joined = {path: Tilt(*(torch.cat([one[path][k].float() for one in tilts]) for k in (0, 1))) for path in tilts[0]}
            at = place, torch.tensor(short, device=margins.device)
            margins[at] = torch.maximum(margins[at], self.settle(rows, joined, gaps[at], part[place]))
        return margins

    def settle(self, rows: Rows, tilts: Tilts, gap: Tensor, image: Tensor) -> Tensor:
        """Bounds of all rows of one image; those above zero that were proved part by part are as good as zero."""
        chain = self.chain(image) if self.method.couplings else None
        choice, curved, aim = Choice(tilts, {}), None, AIM * gap
        if chain is not None:
            effort = Effort(self.method.couplings, self.method.work, self.method.seconds)
            choice, curved, value = coupled_rows(rows, tilts, aim, effort, chain)
        else:
            value = valued(rows, doubled(tilts), True)[0]
        if not self.method.domains:
            return value
        try:
            with limited(Allowance(self.method.work)), limited(Clock(self.method.seconds)):
                for at in value.argsort().tolist():
                    one = torch.tensor([at], device=value.device)
                    if value[at] > 0 or value[at] < -(NEAR if chain is None else CLOSE) * gap[at]:
                        break
                    curves = None if curved is None else curved.of(one)
                    if not branched(rows.of(one), choice.of(one), aim[one], self.method.domains, chain, curves).proved:
                        break  # this one stays open, and so does the image
                    value[at] = LEAST  # above zero, nobody knows how far
        except OutOfTime:
            ask()
        return value

    def chain(self, image: Tensor) -> Chain | None:
        """The chain of the network around one image, if it is one."""
        if self.links is None:
            sample = proved_trace(self.model, self.around(self.x[:1], self.x.new_zeros(1)), False)
            self.links = links(sample.steps)
        return chain_of(self.model, self.x[image][None], self.links) if self.links else None

    def stage(self, part: Tensor, radii: Tensor, balls: dict[str, Ball], hook: Tighten) -> tuple[Trace, Found]:
        """The bounds with intervals that `hook` tightens."""
        y = self.y[part]
        found = self.less(ball_trace(self.model, self.around(self.x[part], radii), balls, hook), part, radii)
        margins, shares = linear_proof(found, y)
        pairs = ((margins <= 0) & self.right(part)[:, None]).scatter(1, y[:, None], False).nonzero()
        if len(pairs) and tiltable(found.steps):
            value, share = self.tilted(found, balls, pairs, part, radii)
            at = tuple(pairs.T)
            margins[at], shares[at] = torch.maximum(margins[at], value), torch.maximum(shares[at], share)
        return found, Found(margins, shares)

    def right(self, part: Int[Tensor, " some"]) -> Tensor:
        """Images whose label has the largest logit; the others are not worth a search."""
        return self.differences(part).scatter(1, self.y[part][:, None], torch.inf).amin(1) > 0

    def differences(self, part: Int[Tensor, " some"]) -> Tensor:
        """f_y - f_j at the images."""
        logits: Tensor = self.model(self.x[part])
        return logits.gather(1, self.y[part][:, None]) - logits

    def tilted(
        self, found: Trace, balls: dict[str, Ball], pairs: Int[Tensor, "rows 2"], part: Tensor, radii: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Bounds of these pairs (place, other class) with the slopes at hand, then, where they do not do, with better ones."""
        place, other = pairs.T
        rows = self.rows(found, balls, pairs, part)
        keys, eps = [(int(part[a]), b) for a, b in pairs.tolist()], radii[place]
        tilts = self.begin(rows, keys, eps)
        value, share = valued(rows, doubled(tilts), True)
        short = torch.isin(place, place[value <= 0]).nonzero().flatten() if self.method.steps else place[:0]
        short = short[value[short] <= 0]
        if len(short):
            gap = self.differences(part)[place, other]
            some = rows.of(short)
            better = optimised(some, _of(tilts, short), AIM * gap[short], Search(self.method.steps, self.method.rate))
            raised, reached = valued(some, doubled(better), True)
            for path, tilt in better.items():
                tilts[path].slope[short], tilts[path].multiplier[short] = tilt.slope, tilt.multiplier
            value[short], share[short] = torch.maximum(value[short], raised), torch.maximum(share[short], reached)
        for at, key in enumerate(keys):
            self.kept[key] = float(eps[at]), _of(tilts, torch.tensor([at]))
        return value, share

    def rows(self, found: Trace, balls: dict[str, Ball], pairs: Int[Tensor, "rows 2"], part: Tensor) -> Rows:
        """f_y - f_j for these pairs (place, other class j)."""
        place, other = pairs.to(self.x.device).T
        lines = margin_rows(self.y[part], found)
        lines = Lines(lines.slopes[place, other][:, None], lines.offsets[place, other][:, None])
        return Rows(indexed(found.steps, place), lines, balls_at(balls, found.steps, place), place)

    def begin(self, rows: Rows, keys: list[tuple[int, int]], eps: Tensor) -> Tilts:
        """The slopes and multipliers that served last (multipliers fall with the radius), else those of a first guess."""
        known = [at for at, key in enumerate(keys) if key in self.kept]
        fresh = [at for at, key in enumerate(keys) if key not in self.kept]
        parts = [started(rows.of(torch.tensor(fresh)))] if fresh else []
        for at in known:
            before, tilts = self.kept[keys[at]]
            parts.append({path: Tilt(tilt.slope, tilt.multiplier * (before / float(eps[at]))) for path, tilt in tilts.items()})
        order = torch.tensor(fresh + known).argsort()
        joined = {path: Tilt(*(torch.cat([one[path][k].float() for one in parts])[order] for k in (0, 1))) for path in parts[0]}
        return joined


def _of(tilts: Tilts, which: Tensor) -> Tilts:
    return {path: Tilt(tilt.slope[which], tilt.multiplier[which]) for path, tilt in tilts.items()}
