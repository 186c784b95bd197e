"""The attack phase: runs the schedule on a model, part by part, within a time budget."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.attacks import PGD, Attack, SuperDeepFool, schedule
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.schedule import FIRST, Known
from robustbench_rkhs.evaluation.counting import run_attack
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.evaluation.tables import Tables
from robustbench_rkhs.runtime.clock import Clock, OutOfTime
from robustbench_rkhs.runtime.messages import Say
from robustbench_rkhs.verdicts import Breach, Rechecked

Places = Int[np.ndarray, " some"]
Group = list[Int[np.ndarray, "_"]]
"""Blocks of places that may be worked at side by side."""
Radii = Float[np.ndarray, " some"]
TOLD = 10.0
"""The remaining time is reported where it is more than these seconds."""
LEARNING = 512
"""Images of a block, at least, of an attack that learns from some what pays on the others."""
PILOTS = 64
"""The same where a budget cuts blocks."""
SHARE = 0.8
"""Share of the time left that a part is cut to: images that are farther from falling take longer than those before them."""


@dataclass
class AttackPhase:
    """Runs the protocol on what is open, by `attacks/schedule.py`.

    Minimal-norm attacks first, in the protocol's order, each on every image still open at some eps. Then rounds of the fixed-budget
    attacks, each image at its largest open eps, until nothing is open. Then the sampled check of inferred survivals, the masking
    check where no attack of the protocol is scale-invariant, and the audit of the certified images that no minimal-norm attack saw.
    An attack of our engine takes each image's own eps in one call, and its rows are kept image by image; others are called once an
    eps, and keep their blocks. A block bounds the memory. What is asked next follows from the parts alone, so a run resumes
    wherever it stopped.
    """

    subject: Subject
    recipe: EvalRecipe
    box: str
    input_digests: list[str]
    predicted: Tensor
    certified: Tensor
    """Each image's largest proved radius; -1 where nothing is claimed."""
    margin: Tensor
    """Of the clean logits: the order of images that nothing has broken yet."""
    protocol: list[Attack]
    labels: list[str]
    say: Say
    clock: Clock
    tables: list[pd.DataFrame] = field(default_factory=Tables)
    """One table a finished part."""
    breaches: list[Breach] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """What attacks ended in that failed."""
    rechecked: Rechecked = field(default_factory=Rechecked)
    """Inferred survivals that were attacked at their own eps after all, and how many of them were broken."""

    def __post_init__(self) -> None:
        split, images = self.subject.split, len(self.subject.split)
        self.epsilons = sorted({float(eps) for eps in self.recipe.eps})
        self.right = (self.predicted == split.y).cpu().numpy()
        self.proved = self.certified.cpu().numpy()
        self.margins = self.margin.double().cpu().numpy()
        self.index = split.index.cpu().numpy()
        self.place = {int(index): place for place, index in enumerate(self.index)}
        aimed = [attack.aimed(norm=self.recipe.norm, eps=None, seed=self.recipe.seed) for attack in self.protocol]
        named = list(zip(self.labels, aimed, strict=True))
        self.minimal = {label: attack for label, attack in named if attack.minimal_norm}
        self.fixed = {label: attack for label, attack in named if not attack.minimal_norm}
        self.broken = np.full(images, np.inf)
        self.failed = np.full(images, np.inf)
        """Smallest eps at which a fixed-budget attack ended in an error or an unconfirmed result: nothing more is tried there."""
        self.ran: dict[str, dict[int, dict[float, float]]] = {label: {} for label in self.labels}
        """Of each attack, image and budget (inf where there is none): the radius."""
        self.survived = {label: np.full(images, -np.inf) for label in self.labels}
        """Of each attack, the largest budget that an image survived, and inf where a minimal-norm attack ran."""
        self.pace: dict[str, float] = {}
        """Seconds per image, of each attack's latest part."""

    def all(self) -> None:
        """Everything, in order. Raises OutOfTime where the budget is used up before."""
        self.find_minimal()
        self.find_within()
        self.recheck()
        self.check_masking()
        self.audit()

    def find_minimal(self) -> None:
        """The minimal-norm attacks, on every image that is open at some eps."""
        for label, attack in self.minimal.items():
            eps = schedule.next_eps(self.epsilons, self.known(np.full(len(self.index), -np.inf)))
            places = schedule.order(eps, self.known(), self.margins)
            blocks = schedule.blocks(places, self.recipe.block, FIRST)
            for group in self.told(self.groups(blocks, attack), len(places), label):
                self.run(attack, label, group)

    def find_within(self) -> None:
        """Rounds of the fixed-budget attacks: every open image at its largest open eps, until none is open."""
        by_eps = not all(isinstance(attack, EngineAttack) for attack in self.fixed.values())
        learning = any(map(learns, self.fixed.values()))  # its pilot is the dearer the smaller the block
        size = max(self.recipe.block, LEARNING) if learning else self.recipe.block
        while self.fixed:
            known = self.known()
            eps = schedule.next_eps(self.epsilons, known)
            places = schedule.order(eps, known, self.margins, by_eps)
            if not len(places):
                return
            groups = self.groups(schedule.blocks(places, size), *self.fixed.values())
            for group in self.told(groups, len(places), "+".join(self.fixed)):
                for label, attack in self.fixed.items():
                    queried = (self.broken > eps) & (self.survived[label] < eps)
                    still = [block[queried[block]] for block in group]
                    self.run(attack, label, still, eps[np.concatenate(still)])

    def recheck(self) -> None:
        """The sampled check of the heuristic: inferred survivals get the fixed-budget attacks at their own eps."""
        pairs = [
            (int(place), eps)
            for eps in self.epsilons
            for place in np.flatnonzero(self.standing(eps))
            if self.fixed and any(eps not in self.ran[label].get(int(place), {}) for label in self.fixed)
        ]
        chosen = schedule.sample(pairs, self.index, self.recipe.seed, self.recipe.rechecked)
        for label, attack in self.fixed.items():
            todo = [(place, eps) for place, eps in chosen if eps not in self.ran[label].get(place, {}) and self.broken[place] > eps]
            places, eps = np.array([place for place, _ in todo], dtype=int), np.array([eps for _, eps in todo])
            for group in self.groups(schedule.blocks(np.arange(len(todo)), self.recipe.block), attack):
                self.run(attack, label, [places[some] for some in group], eps[np.concatenate(group)])
        fell = sum(bool(self.broken[place] <= eps) for place, eps in chosen)
        self.rechecked = Rechecked(len(chosen), fell)
        if fell:
            self.find_within()  # what they survived above says nothing of the eps below any more

    def check_masking(self) -> None:
        """20 steps on the margin against all that survived, where no attack of the protocol is scale-invariant."""
        if any(attack.scale_invariant for attack in self.protocol):
            return
        check = PGD(box=self.box, steps=20).aimed(norm=self.recipe.norm, eps=None, seed=self.recipe.seed)
        for eps in reversed(self.epsilons):
            for block in schedule.blocks(np.flatnonzero(self.standing(eps)), self.recipe.block):
                self.run(check, "check:pgd", [block], np.full(len(block), eps))

    def audit(self) -> None:
        """The cheapest sound minimal-norm attack on the certified images that none of the protocol ran on."""
        queried = [eps for eps in self.epsilons if eps > 0]
        if not queried:
            return
        certified = self.right & (self.proved >= queried[0]) & (self.broken > queried[0])
        for label in self.minimal:
            certified &= self.survived[label] < np.inf
        attack = SuperDeepFool(norm=self.recipe.norm, box=self.box, seed=self.recipe.seed)
        label = f"audit:{attack.label}"
        places = np.flatnonzero(certified)
        blocks = schedule.blocks(places, self.recipe.block, FIRST)
        for group in self.told(self.groups(blocks, attack), len(places), label):
            self.run(attack, label, group)

    def groups(self, blocks: Iterator[Places], *attacks: Attack) -> Iterator[Group]:
        """As many blocks at once as there are workers to share them, where all of the attacks may be shared."""
        shared = all(isinstance(attack, EngineAttack) and not learns(attack) for attack in attacks)
        while group := list(islice(blocks, self.recipe.workers if shared else 1)):
            yield group

    def known(self, survived: Radii | None = None) -> Known:
        """What is known of every image; where an attack failed, nothing is open."""
        if survived is None:
            held = [self.survived[label] for label in self.fixed] or [np.full(len(self.index), np.inf)]
            survived = np.minimum.reduce(held)
        return Known(self.right, self.proved, np.minimum(self.broken, self.failed), survived)

    def standing(self, eps: float) -> np.ndarray:
        """Which images survived at eps: neither proved nor broken there, and every attack of the protocol ran on them."""
        open_here = self.known(np.full(len(self.index), -np.inf)).open(eps)
        for label in self.labels:
            open_here &= self.survived[label] >= eps
        return open_here

    def run(self, attack: Attack, label: str, group: Group, eps: Radii | None = None) -> None:
        """One attack on these blocks: one call with each image's own eps, or a call per eps; as many as the budget has time for."""
        places, blocks = np.concatenate(group), np.repeat(np.arange(len(group)), [len(block) for block in group])
        if eps is not None and not isinstance(attack, EngineAttack):
            for value in sorted(set(eps.tolist()), reverse=True):
                aimed = attack.model_copy(update={"eps": value})
                self.part(aimed, label, places[eps == value], None)
            return
        start = 0
        while start < len(places):
            size = len(places) - start
            if isinstance(attack, EngineAttack) and self.clock.budget is not None:
                # what the time left is enough for at the pace so far, which is slower than that of more images at once
                pace = self.pace.get(label, 0.0)
                least = PILOTS if learns(attack) else 1
                size = min(size, max(least, int(SHARE * self.clock.left() / pace)) if pace > 0 else least)
            some = slice(start, start + size)
            self.part(attack, label, places[some], None if eps is None else eps[some], blocks[some])
            start += size

    def part(self, attack: Attack, label: str, places: Places, eps: Radii | None, blocks: Places | None = None) -> None:
        """One part, and what it says of its images."""
        if not len(places):
            return
        if self.clock.left() <= 0:
            raise OutOfTime
        positions = torch.as_tensor(places, device=self.subject.device)
        budgets = None if eps is None else torch.as_tensor(eps, dtype=torch.float64)
        known = self.certified[positions]
        started = time.monotonic()
        done = run_attack(self.subject, attack, positions, self.predicted, self.input_digests, known, label, budgets, blocks)
        took = (time.monotonic() - started) / len(places)
        self.pace[label] = max(took, float(done.table["seconds"].mean()))  # what is read from a file says what it took then
        self.tables.append(done.table)
        self.breaches += done.noticed.breaches
        for line in done.noticed.failed:
            if line not in self.errors:
                self.errors.append(line)
                self.say(line)
        self.note(done.table, label)

    def note(self, table: pd.DataFrame, label: str) -> None:
        """Fold a part's rows into what is known."""
        radii, budgets = table["radius"].to_numpy(), table["eps"].fillna(np.inf).to_numpy()
        for index, eps, radius, reason in zip(table["index"], budgets, radii, table["state_reason"], strict=True):
            place = self.place[index]
            self.broken[place] = min(self.broken[place], radius)
            if label not in self.ran:
                continue  # a check or an audit
            if reason:
                self.failed[place] = min(self.failed[place], eps)
                continue
            ran = self.ran[label].setdefault(place, {})
            ran[eps] = radius
            # what it found takes back what it survived at a larger budget; where there is no budget, it answers every eps
            found = min(ran.values())
            held = [budget for budget, nearest in ran.items() if np.isinf(budget) or (np.isinf(nearest) and budget < found)]
            self.survived[label][place] = max(held, default=-np.inf)

    def told(self, groups: Iterable[Group], images: int, what: str) -> Iterator[Group]:
        """The groups of blocks; after the first, how long the others will take about."""
        started = time.monotonic()
        for number, group in enumerate(groups):
            yield group
            done = sum(map(len, group))
            if number == 0 and images > done:
                took = time.monotonic() - started
                togo = took * (images - done) / done
                if togo > TOLD:
                    line = f"first {done} images took {took:.0f} s; about {togo / 60:.1f} min to go for {images - done}"
                    self.say(f"{what}: {line}")


def learns(attack: Attack) -> bool:
    """Whether what the attack does to an image depends on what it found of the others in its block."""
    return getattr(attack, "effort", "full") == "adaptive"
