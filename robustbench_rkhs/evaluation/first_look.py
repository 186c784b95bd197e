"""The first look: a quick upper bound of every image's radius, before certificates and the full attacks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_rkhs.attacks import SuperDeepFool
from robustbench_rkhs.evaluation.phase_state import Block, Work
from robustbench_rkhs.evaluation.scheduler import Chain
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.runtime.clock import Clock, OutOfTime
from robustbench_rkhs.runtime.cost import estimated

LARGE = 1e9
"""Multiply-adds of one pass of all images from which an evaluation takes more than seconds."""
SHARE = 0.1
"""Share of the time budget for the first look."""


@dataclass
class FirstLook:
    """Two steps of SuperDeepFool towards the likeliest other class on every correctly classified image: at most 10 passes each.

    Only with a time budget, or if one pass of all images takes 1e9 multiply-adds: else the protocol itself takes seconds. Its
    rows are named `first:superdeepfool`: they break images, but are not part of the protocol. Certificates for only the requested
    epsilons skip the images that it broke. In a complete evaluation, only rows with the nearest example stay in the table.
    Not for a smoothed classifier, whose votes are judged together with its certificate.
    """

    work: Work

    def __post_init__(self) -> None:
        work = self.work
        self.attack = SuperDeepFool(
            norm=work.recipe.norm, box=work.box, seed=work.recipe.seed, steps=2, targets=1, candidates=1, line=2
        )
        self.label = f"first:{self.attack.label}"

    def all(self) -> None:
        """Run the first look, if it is due. A part that fails is left to the protocol, which reports it."""
        budget = self.work.clock.budget
        if not self.due():
            return
        clock = Clock(None if budget is None else SHARE * budget)
        try:
            blocks = list(self.blocks())
            self.work.run("first look", self.attack.label, (self.chain(block, clock) for block in blocks), blocks)
        except OutOfTime:
            pass

    def due(self) -> bool:
        """Whether there are images, and a reason for a first look."""
        work = self.work
        if isinstance(work.subject.queried, Smoothed) or not work.right.any() or not max(work.epsilons) > 0:
            return False
        if work.clock.budget is not None:
            return True
        return estimated(work.subject.model, work.subject.split.shape) * len(work.index) >= LARGE

    def blocks(self) -> Iterator[Block]:
        """The correctly classified images, smallest margins first; small blocks first with a time budget."""
        places = np.flatnonzero(self.work.right)
        places = places[np.lexsort([places, self.work.margins[places]])]
        size, start = self.work.recipe.block if self.work.clock.budget is None else 1, 0
        while start < len(places):
            yield places[start : start + size]
            start, size = start + size, min(2 * size, self.work.recipe.block)

    def chain(self, places: Block, clock: Clock) -> Chain:
        """One block."""
        if clock.left() <= 0:
            raise OutOfTime
        done = yield self.work.attack(self.attack, self.label, places, seconds=clock.left())
        rows = done.table[done.table["state_reason"].isin(["", "timeout"])]
        self.work.tables.append(rows)
        self.work.broken[places] = np.where(done.table["state_reason"].isin(["", "timeout"]), done.table["radius"], np.inf)

    def hold_against_certificates(self) -> None:
        """Replay images that were broken within a radius that was proved only afterwards: breaches."""
        work = self.work
        broken = np.flatnonzero((work.broken < np.inf) & (work.broken <= work.certified))
        if len(broken):
            work.breaches += work.scheduler.one(work.attack(self.attack, self.label, broken)).noticed.breaches

    def superseded(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table without the first-look rows that found nothing, or for which another method found a nearer example."""
        own = table["method"].str.startswith("first:").to_numpy()
        if not own.any():
            return table
        others = table[~own & (table["kind"] == "attack")].groupby("index")["radius"].min()
        nearest = table["index"].map(others).fillna(np.inf).to_numpy()
        radius = table["radius"].to_numpy()
        kept: pd.DataFrame = table[~own | (np.isfinite(radius) & (radius <= nearest))]
        return kept.reset_index(drop=True)
