"""The shared state of an evaluation's phases: subject, recipe, knowledge about each image, and the scheduler."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.certificates import Certificate
from robustbench_rkhs.data.stream import BLOCK, Stream
from robustbench_rkhs.evaluation.cache_key import digest_of
from robustbench_rkhs.evaluation.image_digests import ImageDigests
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.known_answers import answers_digest
from robustbench_rkhs.evaluation.predictions import checked_values
from robustbench_rkhs.evaluation.progress import Follower
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.scheduler import Chain, Scheduler
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.evaluation.tables import Tables
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.threat_model import Box
from robustbench_rkhs.runtime.clock import Clock
from robustbench_rkhs.runtime.cost import estimated
from robustbench_rkhs.runtime.events import Message, emit
from robustbench_rkhs.runtime.steps import Step
from robustbench_rkhs.verdicts import Breach, Part

Places = Int[np.ndarray, " some"]
"""Positions of images in the split."""
Block = Int[np.ndarray, "_"]
"""The same, of one of several blocks."""
Radii = Float[np.ndarray, " some"]
ASKED = 256
"""Images of a job of predictions."""
PASS, FEWEST = 2.5e9, 8
"""Multiply-adds, about, of a pass of a block of costly attacks on a CPU (an ensemble takes ten thousand), and its least images."""


@dataclass
class Work:
    """A running evaluation."""

    subject: Subject
    recipe: EvalRecipe
    box: Box
    scheduler: Scheduler
    clock: Clock
    follower: Follower
    tables: Tables = field(default_factory=Tables)
    """The part of every finished job."""
    breaches: list[Breach] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Errors of failed attacks."""
    refused: list[str] = field(default_factory=list)
    """The reasons why certificates were refused or failed."""
    left_out: list[str] = field(default_factory=list)
    """Certificates that were left out, with reasons."""
    of: Mapping[str, Any] = field(default_factory=dict)
    """Everything that the results of all jobs depend on."""

    def __post_init__(self) -> None:
        images = len(self.subject.split)
        self.index = self.subject.split.index.cpu().numpy()
        self.tables = Tables(ImageDigests(self.index))
        self.epsilons = sorted({float(eps) for eps in self.recipe.eps})
        self.predicted = np.zeros(images, dtype=np.int64)
        self.right = np.zeros(images, dtype=bool)
        self.logits = torch.zeros(images, 0)
        """The clean logits, on the CPU."""
        self.margins = np.zeros(images)
        """The margins of the clean logits."""
        self.certified = np.full(images, -1.0)
        """Each image's largest proved radius; -1 without a claim."""
        self.broken = np.full(images, np.inf)
        """The distance of the adversarial image found by the first look; infinite if none."""

    def predict(self) -> None:
        """The model's predictions. Computed anew each time, so that changed code never gets old results.

        Raises UserError for NaN, or probabilities instead of logits.
        """
        places, found = np.arange(len(self.index)), dict[int, Any]()

        def block(number: int, some: Places) -> Chain:
            index = tuple(self.index[some].tolist())
            part = yield Job("predict", "prediction", self.recipe.norm, self.box, index, of=self.subject.identity())
            found[number] = part.logits
            self.tables.append(part.table)

        size = min(ASKED, BLOCK) if isinstance(self.subject.split.x, Stream) else ASKED
        starts = range(0, max(len(places), 1), size)
        blocks = [places[start : start + size] for start in starts]
        self.run("predictions", "", (block(start, some) for start, some in zip(starts, blocks, strict=True)), blocks)
        logits, labels = checked_values(torch.cat([found[start] for start in starts])), self.subject.split.y.cpu()
        self.logits, self.predicted = logits, logits.argmax(1).numpy()
        self.right = (logits.argmax(1) == labels).numpy()
        self.margins = margin(logits, labels).double().numpy()
        identity, store = self.subject.identity(), self.scheduler.store
        folder = None if store.exchange else store.folder  # machines that share no folder have to agree on it without a record
        self.of = {**identity, "answers": answers_digest(folder, identity, self.index, logits)}

    def block_of(self, attacks: Iterable[Attack]) -> int:
        """Images of a block of these attacks: few of a costly network on a CPU, as a stop undoes a block, which then costs minutes.

        A library's attacks keep the recipe's block, on which their draws depend.
        """
        subject, block = self.subject, self.recipe.block
        if torch.device(subject.device).type != "cpu" or not all(isinstance(attack, EngineAttack) for attack in attacks):
            return block
        votes = subject.queried.votes if isinstance(subject.queried, Smoothed) else 1
        return min(block, max(FEWEST, int(PASS / max(votes * estimated(subject.queried, subject.split.shape), 1))))

    def run(self, phase: str, method: str, chains: Iterable[Chain], blocks: Sequence[Block]) -> None:
        """Run these chains, one for each block of images, and tell how far they have come."""
        with self.follower.step(phase, method, sum(map(len, blocks))) as step:
            self.advance(step, chains, blocks)

    def advance(self, step: Step, chains: Iterable[Chain], blocks: Sequence[Block]) -> None:
        """The same, of some blocks of a step."""
        images: dict[Chain, int] = {}

        def counted() -> Iterator[Chain]:
            for chain, block in zip(chains, blocks, strict=True):
                images[chain] = len(block)
                yield chain

        for chain in self.scheduler.run(counted()):
            step.add(images.pop(chain), chain in self.scheduler.computing)
            self.follower.tell(step)

    def attack(self, attack: Attack, label: str, places: Places, eps: Radii | None = None, seconds: float | None = None) -> Job:
        """The job of an attack on these images, each within its own `eps` if given."""
        certified = tuple(self.certified[places].tolist())
        # whether a vote counts depends on the certificate's claim
        given = {"certified": digest_of(certified)} if isinstance(self.subject.queried, Smoothed) else {}
        budgets = () if eps is None else tuple(eps.tolist())
        known: dict[str, Any] = {"method": attack, "certified": certified, "eps": budgets, "given": given}
        return self._job("attack", label, places, **known, seconds=seconds)

    def certify(self, certificate: Certificate, label: str, places: Places, seconds: float | None = None, **given: Any) -> Job:
        """The job of a certificate on these images. The epsilons at which it may stop are part of its key."""
        return self._job("certify", label, places, method=certificate, given={"epsilons": self.epsilons, **given}, seconds=seconds)

    def plan(self, places: Places, given: Mapping[str, Any]) -> Job:
        """The job of a plan, learnt on these images."""
        return self._job("plan", "plan", places, given=given)

    def diagnose(self, places: Places, given: Mapping[str, Any]) -> Job:
        """The job of a diagnosis."""
        return self._job("diagnose", "diagnosis", places, given=given)

    def note(self, part: Part) -> None:
        """Store the result of a job."""
        self.tables.append(part.table)
        self.breaches += part.noticed.breaches
        self._new(part.noticed.failed, self.errors, "")
        self.refuse(part.noticed.refused)

    def refuse(self, lines: Sequence[str]) -> None:
        """Report why some certificates do not run, each line once."""
        self._new(lines, self.refused, "no certificate: ")

    def leave_out(self, labels: Sequence[str], why: str) -> None:
        """Note that these certificates do not run, in one line."""
        if labels:
            self.left_out += [f"{label}: {why}" for label in labels]
            emit(Message(text=f"certificates left out: {', '.join(labels)}: {why}"))

    def _new(self, lines: Sequence[str], known: list[str], before: str) -> None:
        for line in lines:
            if line not in known:
                known.append(line)
                emit(Message(text=before + line))

    def _job(self, phase: Any, label: str, places: Places, **fields: Any) -> Job:
        index, predicted = tuple(self.index[places].tolist()), tuple(self.predicted[places].tolist())
        if self.clock.budget is not None:
            own = fields.get("seconds")
            fields["seconds"] = min(self.clock.left(), np.inf if own is None else own)
        return Job(phase, label, self.recipe.norm, self.box, index, predicted=predicted, of=self.of, **fields)
