"""Proofs over linf balls for `sdp_crown`: intervals, lines with free slopes, and branch and bound."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.certificates.counterexamples import refuted
from robustbench_rkhs.certificates.relaxation import Balls, RelaxationCertificate
from robustbench_rkhs.relaxations.ascent import Search
from robustbench_rkhs.relaxations.full_crown import Found, linear_proof, proved_trace
from robustbench_rkhs.relaxations.interval import Trace
from robustbench_rkhs.relaxations.interval_branching import parted
from robustbench_rkhs.relaxations.interval_rows import (
    Ends,
    Frame,
    Leans,
    begun,
    framed,
    interval_bounds,
    leaned,
    of_rows,
    one_row,
    whole,
)
from robustbench_rkhs.relaxations.linear_bounds import Lines, margin_rows
from robustbench_rkhs.relaxations.renewed import renewed
from robustbench_rkhs.relaxations.rounding import LEAST
from robustbench_rkhs.relaxations.rows import indexed, tiltable
from robustbench_rkhs.runtime.allowance import Allowance
from robustbench_rkhs.runtime.clock import Clock, OutOfTime, ask, limited

AIM = 1e-4
"""Rows are optimised until they lie this far above zero, relative to the difference of logits: float32 rounds in between."""
STEPS, RATE = 50, 0.1
"""Gradient steps at most on the slopes of a row, and their size."""
CLOSER = Search(5, 0.3)
"""The search for intervals at kinks."""


class Limits(NamedTuple):
    """Fields of the certificate (`SdpCrownCertificate`)."""

    steps: int
    intervals: int
    domains: int
    work: float
    seconds: float | None


class Boxes(Balls):
    """linf balls around images.

    First linear bounds, as in `crown`; then slopes optimised for each pair of classes; then, at a requested eps, intervals at the
    kinks from optimised rows, and branch and bound.
    """

    def __init__(
        self, method: RelaxationCertificate, limits: Limits, model: nn.Module, x: Tensor, y: Tensor, asked: Sequence[float] = ()
    ) -> None:
        super().__init__(method, model, x, y)
        self.limits = limits
        self.asked = torch.tensor(list(asked), dtype=torch.float64, device=x.device)

    def bounded(self, part: Int[Tensor, " some"], radii: Float64[Tensor, " some"]) -> tuple[Trace, Found]:
        found = self.less(proved_trace(self.model, self.around(self.x[part], radii), True), part, radii)
        margins, shares = linear_proof(found, self.y[part])
        if not self.limits.steps or not tiltable(found.steps):
            return found, Found(margins, shares)
        logits: Tensor = self.model(self.x[part])
        gaps = logits.gather(1, self.y[part][:, None]) - logits
        rows = margin_rows(self.y[part], found)
        for place, y in enumerate(self.y[part].tolist()):
            short = [other for other in range(margins.shape[1]) if other != y and margins[place, other] <= 0]
            if not short or not bool((gaps[place, [other for other in range(gaps.shape[1]) if other != y]] > 0).all()):
                continue
            lines = Lines(rows.slopes[place : place + 1, short], rows.offsets[place : place + 1, short])
            frame = framed(indexed(found.steps, torch.tensor([place], device=part.device)))
            eps = float(radii[place]) if bool((radii[place] == self.asked).any()) else None
            raised = self.raised(frame, lines, gaps[place, short], (int(part[place]), short, eps))
            margins[place, short] = torch.maximum(margins[place, short], raised)
        return found, Found(margins, shares)

    def raised(
        self, frame: Frame, lines: Lines, gaps: Tensor, asked: tuple[int, list[int], float | None]
    ) -> Float64[Tensor, " rows"]:
        """Bounds of the rows of one image; those above zero that were proved part by part are as good as zero.

        asked: the image, the other classes of its rows, and eps where it is one of those requested.
        """
        at, others, eps = asked
        single, ends = frame.single(), whole(frame, len(others))
        leans = self.best(single, lines, ends, gaps)
        value = interval_bounds(frame, lines, ends, leans, True)[0]
        if eps is None or bool((value > 0).all()):
            return value
        short = [other for other, one in zip(others, value.tolist(), strict=True) if one <= 0]
        image, y, unit = self.x[at], int(self.y[at]), self.method.box == "unit"
        if any(refuted(self.model, image, y, other, eps, "linf", unit) for other in short):
            return value
        try:
            with limited(Allowance(self.limits.work)), limited(Clock(self.limits.seconds)):
                if self.few(frame):
                    one = renewed(frame, single, whole(frame, 1), CLOSER, list(frame.kinks))
                    ends = {path: Ends(*(end.expand(len(others), -1) for end in both)) for path, both in one.items()}
                    leans = self.best(single, lines, ends, gaps)
                    value = torch.maximum(value, interval_bounds(frame, lines, ends, leans, True)[0])
                for at in value.argsort().tolist() if self.limits.domains else ():
                    if value[at] > 0:
                        break
                    kept = torch.tensor([at], device=value.device)
                    here, choice = of_rows(ends, leans, kept)
                    if not parted(frame, one_row(lines, at), here, choice, AIM * float(gaps[at]), self.limits.domains).proved:
                        break  # this one stays open, and so does the image
                    value[at] = LEAST  # above zero, nobody knows how far
        except OutOfTime:
            ask()
        return value

    def best(self, single: Frame, lines: Lines, ends: dict[str, Ends], gaps: Tensor) -> Leans:
        quick = Lines(lines.slopes.float(), lines.offsets.float())
        return leaned(single, quick, ends, begun(ends), (AIM * gaps).float(), Search(min(STEPS, self.limits.steps), RATE))

    def few(self, frame: Frame) -> bool:
        """Whether no kink has too many uncertain inputs to be bounded one by one."""
        return max((len(one.units) for one in frame.kinks.values()), default=0) <= self.limits.intervals
