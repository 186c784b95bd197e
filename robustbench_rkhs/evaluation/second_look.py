"""The second look: with a time budget, a few gradient steps within the requested epsilons before the protocol."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from robustbench_rkhs.attacks import APGD
from robustbench_rkhs.attacks.schedule import Known, next_eps, order
from robustbench_rkhs.evaluation.phase_state import Block, Radii, Work
from robustbench_rkhs.evaluation.scheduler import Chain
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.runtime.clock import Clock, OutOfTime

SHARE = 0.6
"""Share of the remaining time for the second look."""


@dataclass
class SecondLook:
    """20 steps of APGD on the margin, on each image that is neither certified nor broken, at its largest open eps; then the next.

    Only with a time budget: a minimal-norm attack of the protocol takes some hundred passes per image before it turns to the next,
    which on a large network leaves most images untested; here most images that break do so in the first of 60 passes. Rows are
    named `first:apgd:margin`: they break images, but are not part of the protocol. Not for a smoothed classifier.
    """

    work: Work

    def __post_init__(self) -> None:
        self.attack = APGD(loss="margin", steps=20, norm=self.work.recipe.norm, box=self.work.box, seed=self.work.recipe.seed)
        self.label = f"first:{self.attack.label}"
        self.stood = np.full(len(self.work.index), -np.inf)
        """The largest eps that each image survived."""

    def all(self) -> None:
        """Run until nothing is open, or its share of the time is used up."""
        work = self.work
        if work.clock.budget is None or isinstance(work.subject.queried, Smoothed):
            return
        clock = Clock(SHARE * max(work.clock.left(), 0.0))
        try:
            while len(places := order(eps := self.due(), self.known(), work.margins)):
                blocks = list(self.blocks(places))
                work.run("second look", self.attack.label, (self.chain(block, eps[block], clock) for block in blocks), blocks)
        except OutOfTime:
            pass

    def known(self) -> Known:
        return Known(self.work.right, self.work.certified, self.work.broken, self.stood)

    def due(self) -> Radii:
        """Each image's largest open eps."""
        return next_eps(self.work.epsilons, self.known())

    def blocks(self, places: Block) -> Iterator[Block]:
        """Small blocks first, as the time per image is not known yet."""
        start, size = 0, 1
        while start < len(places):
            yield places[start : start + size]
            start, size = start + size, min(2 * size, self.work.recipe.block)

    def chain(self, places: Block, eps: Radii, clock: Clock) -> Chain:
        """One block."""
        if clock.left() <= 0:
            raise OutOfTime
        done = yield self.work.attack(self.attack, self.label, places, eps, seconds=clock.left())
        reasons = done.table["state_reason"].to_numpy()
        self.work.tables.append(done.table[np.isin(reasons, ["", "timeout"])])
        radius = np.where(np.isin(reasons, ["", "timeout"]), done.table["radius"].to_numpy(), np.inf)
        self.work.broken[places] = np.minimum(self.work.broken[places], radius)
        self.stood[places] = np.where(np.isinf(radius) & (reasons != "timeout"), eps, self.stood[places])
        self.work.breaches += done.noticed.breaches
