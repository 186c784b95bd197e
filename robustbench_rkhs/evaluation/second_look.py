"""The second look: with a time budget, a few gradient steps within the requested epsilons before the protocol."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from robustbench_rkhs.attacks import APGD, DDN
from robustbench_rkhs.attacks.schedule import Known, next_eps, order
from robustbench_rkhs.evaluation.phase_state import Block, Radii, Work
from robustbench_rkhs.evaluation.scheduler import Chain
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.runtime.clock import Clock, OutOfTime
from robustbench_rkhs.verdicts import Part

SHARE = 0.6
"""Share of the remaining time for the second look."""


@dataclass
class SecondLook:
    """20 steps of APGD on the margin, on each image that is neither certified nor broken, at its largest open eps; then the next.

    Only with a time budget: a minimal-norm attack of the protocol takes some hundred passes per image before it turns to the next,
    which on a large network leaves most images untested; here most images that break do so in the first of 60 passes. Rows are
    named `first:apgd:margin`: they break images, but are not part of the protocol. Not for a smoothed classifier.

    In l2, 20 steps of DDN follow on every image with an eps that is still open (`first:ddn`), so that a table is no worse than DDN
    on all images wherever there is time for that.
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
            if work.recipe.norm == "l2":
                self.minimal(clock)
        except OutOfTime:
            pass

    def minimal(self, clock: Clock) -> None:
        """The nearest images that DDN finds, where that can settle anything."""
        work, ddn = self.work, DDN(steps=20, box=self.work.box, seed=self.work.recipe.seed)
        label, epsilons = f"first:{ddn.label}", np.array(work.epsilons)[:, None]
        open_ = (work.certified < epsilons) & (epsilons < work.broken) & work.right
        blocks = list(self.blocks(np.flatnonzero(open_.any(0))))
        work.run("second look", ddn.label, (self.nearest(ddn, label, block, clock) for block in blocks), blocks)

    def nearest(self, ddn: DDN, label: str, places: Block, clock: Clock) -> Chain:
        """DDN on one block."""
        if clock.left() <= 0:
            raise OutOfTime
        self.record((yield self.work.attack(ddn, label, places, seconds=clock.left())), places)

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
        stood = np.isinf(self.record(done, places)) & (done.table["state_reason"].to_numpy() != "timeout")
        self.stood[places] = np.where(stood, eps, self.stood[places])

    def record(self, done: Part, places: Block) -> Radii:
        """Keep what was found; the distances of the images, infinite where none was."""
        reasons = done.table["state_reason"].to_numpy()
        self.work.tables.append(done.table[np.isin(reasons, ["", "timeout"])])
        radius = np.where(np.isin(reasons, ["", "timeout"]), done.table["radius"].to_numpy(), np.inf)
        self.work.broken[places] = np.minimum(self.work.broken[places], radius)
        self.work.breaches += done.noticed.breaches
        return radius
