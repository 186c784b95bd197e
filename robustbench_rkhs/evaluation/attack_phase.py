"""The attack phase: runs the schedule on a model, block by block, within a time budget."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from robustbench_rkhs.attacks import PGD, Attack, SuperDeepFool, schedule
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.schedule import FIRST, Known
from robustbench_rkhs.evaluation.phase_state import Block, Places, Radii, Work
from robustbench_rkhs.evaluation.runs import Runs
from robustbench_rkhs.evaluation.scheduler import Chain
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.verdicts import Rechecked

LEARNING = 512
"""Least size of a block for an attack that learns on a pilot."""
PILOTS = 64
"""The same with a time budget, which cuts blocks."""
SHARE = 0.8
"""Share of the remaining time to which a part is cut, as later images are harder to break and take longer."""


@dataclass
class AttackPhase:
    """Runs the protocol on the open images, by `attacks/schedule.py`.

    Minimal-norm attacks first, in the protocol's order, each on every image still open at some eps. Then rounds of the fixed-budget
    attacks, each image at its largest open eps, until nothing is open. Then the sampled check of inferred survivals, the masking
    check where no attack of the protocol is scale-invariant, and the audit of the certified images that no minimal-norm attack saw.
    An attack of our engine takes one eps per image in one call, and its rows are cached per image; others are called once per
    eps, and are cached by block. A block bounds the memory; blocks run in parallel. The next step follows from the
    results alone, so a run resumes wherever it stopped.
    """

    work: Work
    protocol: list[Attack]
    labels: list[str]
    rechecked: Rechecked = field(default_factory=Rechecked)
    """Inferred survivals that were also attacked at their own eps, and how many of them were broken."""

    def __post_init__(self) -> None:
        recipe, images = self.work.recipe, len(self.work.index)
        self.epsilons, self.index, self.right, self.margins = (
            self.work.epsilons, self.work.index, self.work.right, self.work.margins)  # fmt: skip
        self.proved, self.recipe, self.box = self.work.certified, recipe, self.work.box
        aimed = [attack.aimed(norm=recipe.norm, eps=None, seed=recipe.seed) for attack in self.protocol]
        named = list(zip(self.labels, aimed, strict=True))
        self.minimal = {label: attack for label, attack in named if attack.minimal_norm}
        self.fixed = {label: attack for label, attack in named if not attack.minimal_norm}
        self.broken = np.full(images, np.inf)
        self.failed = np.full(images, np.inf)
        """Smallest eps at which a fixed-budget attack ended in an error or an unconfirmed result: no further tries there."""
        self.ran = {label: Runs(images) for label in self.labels}
        """By attack, what its runs found."""
        self.survived = {label: np.full(images, -np.inf) for label in self.labels}
        """By attack, the largest budget that each image survived; inf where a minimal-norm attack ran."""
        self.pace: dict[str, float] = {}
        """Seconds per image of each attack's latest part."""

    def all(self) -> None:
        """Run all steps in order. Raises OutOfTime if the time runs out."""
        self.find_minimal()
        self.find_within()
        self.recheck()
        self.check_masking()
        self.audit()

    def find_minimal(self) -> None:
        """The minimal-norm attacks, on every image that is open at some eps."""
        for label, attack in self.minimal.items():
            eps = schedule.next_eps(self.epsilons, self.known(np.full(len(self.index), -np.inf)))
            places = schedule.order(eps, self.looked_at(), self.margins)
            self.side_by_side(attack, label, schedule.blocks(places, self.recipe.block, FIRST))

    def find_within(self) -> None:
        """Rounds of the fixed-budget attacks: every open image at its largest open eps, until none is open."""
        by_eps = not all(isinstance(attack, EngineAttack) for attack in self.fixed.values())
        size = self.size_within()
        while self.fixed:
            known = self.known()
            eps = schedule.next_eps(self.epsilons, known)
            places = schedule.order(eps, known, self.margins, by_eps)
            if not len(places):
                return
            blocks = list(schedule.blocks(places, size))
            self.work.run("attacks", "+".join(self.fixed), (self.within(block, eps[block]) for block in blocks), blocks)

    def size_within(self) -> int:
        """Images of a block of fixed-budget attacks: many where an attack learns on a pilot, and else as `Work.block_of` says."""
        if any(map(learns, self.fixed.values())):
            return max(self.recipe.block, LEARNING)
        return self.work.block_of(self.fixed.values())

    def within(self, places: Places, eps: Radii) -> Chain:
        """The fixed-budget attacks in turn on a block, each on the images that the earlier ones left open."""
        for label, attack in self.fixed.items():
            open_ = (self.broken[places] > eps) & (self.survived[label][places] < eps)
            yield from self.attack(attack, label, places[open_], eps[open_])

    def recheck(self) -> None:
        """The sampled check of the heuristic: run the fixed-budget attacks on inferred survivals at their own eps."""
        pairs = [
            (int(place), eps)
            for eps in self.epsilons
            for place in np.flatnonzero(self.standing(eps))
            if self.fixed and any(not self.ran[label].done(place, eps) for label in self.fixed)
        ]
        chosen = schedule.sample(pairs, self.index, self.recipe.seed, self.recipe.rechecked)
        for label, attack in self.fixed.items():
            todo = [(place, eps) for place, eps in chosen if not self.ran[label].done(place, eps) and self.broken[place] > eps]
            places, eps = np.array([place for place, _ in todo], dtype=int), np.array([eps for _, eps in todo])
            blocks = list(schedule.blocks(np.arange(len(todo)), self.work.block_of(self.fixed.values())))
            self.work.run("attacks", label, (self.attack(attack, label, places[some], eps[some]) for some in blocks), blocks)
        fell = sum(bool(self.broken[place] <= eps) for place, eps in chosen)
        self.rechecked = Rechecked(len(chosen), fell)
        if fell:
            self.find_within()  # their survival at larger eps no longer implies anything below

    def check_masking(self) -> None:
        """20 steps on the margin for all survivors, if no attack of the protocol is scale-invariant."""
        if any(attack.scale_invariant for attack in self.protocol):
            return
        check = PGD(box=self.box, steps=20).aimed(norm=self.recipe.norm, eps=None, seed=self.recipe.seed)
        for eps in reversed(self.epsilons):
            blocks = schedule.blocks(np.flatnonzero(self.standing(eps)), self.recipe.block)
            self.side_by_side(check, "check:pgd", blocks, eps)

    def audit(self) -> None:
        """The cheapest sound minimal-norm attack on the certified images that the protocol did not attack."""
        queried = [eps for eps in self.epsilons if eps > 0]
        if not queried:
            return
        certified = self.right & (self.proved >= queried[0]) & (self.broken > queried[0])
        for label in self.minimal:
            certified &= self.survived[label] < np.inf
        attack = SuperDeepFool(norm=self.recipe.norm, box=self.box, seed=self.recipe.seed)
        label = f"audit:{attack.label}"
        places = np.flatnonzero(certified)
        self.side_by_side(attack, label, schedule.blocks(places, self.recipe.block, FIRST))

    def side_by_side(self, attack: Attack, label: str, blocks: Iterable[Block], eps: float | None = None) -> None:
        """One attack on each of these blocks, at one eps or none."""
        several = list(blocks)
        budgets = [None if eps is None else np.full(len(block), eps) for block in several]
        chains = (self.attack(attack, label, *given) for given in zip(several, budgets, strict=True))
        self.work.run("attacks", label, chains, several)

    def known(self, survived: Radii | None = None) -> Known:
        """The knowledge about every image; where an attack failed, nothing is open."""
        if survived is None:
            held = [self.survived[label] for label in self.fixed] or [np.full(len(self.index), np.inf)]
            survived = np.minimum.reduce(held)
        return Known(self.right, self.proved, np.minimum(self.broken, self.failed), survived)

    def looked_at(self) -> Known:
        """The same, plus the distances of the first look if the time is limited: the images closest to being broken come first."""
        known = self.known()
        if self.work.clock.budget is None:
            return known
        return replace(known, broken=np.minimum(known.broken, self.work.broken))

    def standing(self, eps: float) -> np.ndarray:
        """Which images survived at eps: neither certified nor broken there, and every attack of the protocol ran on them."""
        open_here = self.known(np.full(len(self.index), -np.inf)).open(eps)
        for label in self.labels:
            open_here &= self.survived[label] >= eps
        return open_here

    def attack(self, attack: Attack, label: str, places: Places, eps: Radii | None = None) -> Chain:
        """One attack on a block: one call with one eps per image, or one call per eps; as many images as the time allows."""
        if eps is not None and not isinstance(attack, EngineAttack):
            for value in sorted(set(eps.tolist()), reverse=True):
                aimed = attack.model_copy(update={"eps": value})
                yield from self.part(aimed, label, places[eps == value], None)
            return
        start = 0
        while start < len(places):
            size = len(places) - start
            if isinstance(attack, EngineAttack) and self.work.clock.budget is not None:
                # the images that fit in the remaining time at the pace so far (larger batches would be faster)
                pace = self.pace.get(label, 0.0)
                least = PILOTS if learns(attack) else 1
                size = min(size, max(least, int(SHARE * self.work.clock.left() / pace)) if pace > 0 else least)
            some = slice(start, start + size)
            yield from self.part(attack, label, places[some], None if eps is None else eps[some])
            start += size

    def part(self, attack: Attack, label: str, places: Places, eps: Radii | None) -> Chain:
        """Run one job and record its results."""
        if not len(places):
            return
        if self.work.clock.left() <= 0:
            raise OutOfTime
        started = time.monotonic()
        done = yield self.work.attack(attack, label, places, eps)
        took = (time.monotonic() - started) / len(places)
        self.pace[label] = max(took, float(done.table["seconds"].mean()))  # a cached part contains the time that it took originally
        self.work.note(done)
        self.note(done.table, label)

    def note(self, table: pd.DataFrame, label: str) -> None:
        """Merge a part's rows into the knowledge about images."""
        places = self.work.subject.places(table["index"].to_numpy())
        radii, budgets = table["radius"].to_numpy(), table["eps"].fillna(np.inf).to_numpy()
        np.minimum.at(self.broken, places, radii)
        if label not in self.ran:
            return  # a check or an audit
        failed = (table["state_reason"] != "").to_numpy()
        np.minimum.at(self.failed, places[failed], budgets[failed])
        ran = places[~failed]
        self.ran[label].note(ran, budgets[~failed], radii[~failed])
        self.survived[label][ran] = self.ran[label].survived(ran)


def learns(attack: Attack) -> bool:
    """Whether the attack's result for an image depends on the other images in its block."""
    return getattr(attack, "effort", "full") == "adaptive"
