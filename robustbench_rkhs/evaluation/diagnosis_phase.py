"""The diagnosis phase: checks for gradient masking; if one fails, more attacks run on the survivors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.evaluation.diagnostics import escalated, sampled
from robustbench_rkhs.evaluation.diagnostics.transfer import Transfer
from robustbench_rkhs.evaluation.phase_state import Places, Work
from robustbench_rkhs.evaluation.scheduler import Chain
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.verdicts import About, Diagnosis, Record
from robustbench_rkhs.verdicts.image_states import counted

IMAGES = {"quick": 16}
"""Images of the diagnosis by effort, if not 64: more would cost as much as the attacks of a quick evaluation."""


@dataclass
class DiagnosisPhase:
    """Diagnoses the model at the most informative eps; if a check fails, attacks the survivors further.

    Largest eps first; an image that survives the escalation there is not attacked again below. Smoothed classifiers are not
    diagnosed (they are random by design, and make no claims beyond their certificate), nor if the recipe switches it off.
    `transfer`: from an undefended twin, diagnosed with the rest and then tried on every survivor, in the same order. Rows of the
    escalated attacks are named `check:` + label: they break images, but are not part of the protocol.
    """

    work: Work
    about: About
    protocol: Sequence[Attack]
    transfer: Transfer | None = None
    constant: Diagnosis | None = None
    """The diagnosis of a constant model, which replaces the others: they would compare attacks without a direction."""
    diagnostics: Sequence[Diagnosis] = ()
    marks: Sequence[str] = (verdicts.UNDIAGNOSED,)
    """Names of the failed diagnoses; `undiagnosed` if they are switched off, and until they are made."""

    def all(self) -> None:
        """Run the diagnoses, then the attacks that they require. Raises OutOfTime if the time runs out."""
        work = self.work
        if not len(work.subject.split):
            self.marks = ()
            return
        if work.clock.left() <= 0:
            raise OutOfTime
        work.follower.begin("diagnosis")
        smoothed = isinstance(work.subject.queried, Smoothed)
        earlier = [one for one in self.diagnostics if one.name in verdicts.NO_FUNCTION]
        if self.constant is not None:
            self.diagnostics = [*earlier, self.constant]
            self.marks = list(dict.fromkeys(one.name for one in self.diagnostics if one.tripped))
            return
        if work.recipe.diagnostics and not smoothed:
            self.diagnostics = [*earlier, *self.diagnosed()]
        off = not work.recipe.diagnostics and not smoothed
        failed = list(dict.fromkeys(one.name for one in self.diagnostics if one.tripped))
        self.marks = [verdicts.UNDIAGNOSED, *failed] if off else failed
        attacks: dict[str, Attack] = {}
        if self.transfer is not None:
            self.escalate({"transfer": self.transfer.model_copy(update={"box": work.box})})
        if not off and verdicts.BATCH_DEPENDENT not in self.marks:  # whose accuracies are withheld whatever breaks
            attacks = {f"check:{attack.label}": attack for attack in escalated(self.protocol, self.marks)}
        self.escalate(attacks)

    def known(self) -> Record:
        """The table so far."""
        return Record(self.work.tables.whole(), self.about)

    def diagnosed(self) -> Sequence[Diagnosis]:
        """Every diagnosis at the most informative eps, on a sample of the images."""
        work, known = self.work, self.known()
        eps = most_informative_eps(known)
        places = np.array(sampled(work.index.tolist(), IMAGES.get(work.recipe.effort, 64), work.recipe.seed))
        given: dict[str, Any] = {"eps": eps, "closed": (work.certified[places] >= eps).tolist()}
        given["found"] = {name: [_plain(far) for far in found[places]] for name, found in sorted(_found(known, work).items())}
        if self.transfer is not None:
            given |= {"twin": self.transfer.key, "twin_answers": self.transfer.answers}
        with work.follower.step("diagnosis", "", len(places)):
            return work.scheduler.one(work.diagnose(places, given)).noticed.diagnostics

    def escalate(self, attacks: Mapping[str, Attack]) -> None:
        """These attacks in turn on the survivors at each eps, largest first; images that survive them all are skipped below."""
        work, withstood = self.work, set[int]()
        for eps in sorted({eps for eps in self.about.epsilons if eps > 0 and attacks}, reverse=True):
            for label, attack in attacks.items():
                states = verdicts.states(self.known(), eps)["state"]
                still = [row for row, index in enumerate(work.index) if states[index] == "survived" and index not in withstood]
                aimed = attack.aimed(norm=work.recipe.norm, eps=eps, seed=work.recipe.seed)
                places, size = np.array(still, dtype=np.int64), work.block_of([attack])
                blocks = [places[i : i + size] for i in range(0, len(places), size)]
                work.run("diagnosis", label, (self.chain(aimed, label, block) for block in blocks), blocks)
            states = verdicts.states(self.known(), eps)["state"]
            withstood |= set(states.index[states == "survived"])

    def chain(self, attack: Attack, label: str, places: Places) -> Chain:
        """One block of an escalated attack."""
        if self.work.clock.left() <= 0:
            raise OutOfTime
        self.work.note((yield self.work.attack(attack, label, places)))


def _plain(distance: float) -> float | str:
    return float(distance) if np.isfinite(distance) else str(distance)


def most_informative_eps(known: Record) -> float:
    """The most informative eps: where robust accuracy is closest to half of clean accuracy.

    The largest of several (if all attacks fail, every eps is equally far).
    """
    gaps = {}
    for eps in known.about.epsilons:
        states = verdicts.states(known, eps)["state"]
        standing, right = states.isin(["certified", "survived", "untested"]).sum(), (states != "wrong").sum()
        gaps[eps] = abs(2 * int(standing) - int(right))
    return min(gaps, key=lambda eps: (gaps[eps], -eps))


def _found(known: Record, work: Work) -> dict[str, np.ndarray]:
    """By method, the distance of each image's adversarial example; inf where none."""
    norm, table = known.about.norm, known.table
    falls = table[counted(table, norm, known.about.box)]
    where = {int(index): row for row, index in enumerate(work.index)}
    found = {}
    for method, rows in falls.groupby("method"):
        nearest = rows.groupby("index")[f"distance_{norm}"].min()
        distance = np.full(len(where), np.inf)
        distance[[where[int(index)] for index in nearest.index]] = nearest.to_numpy(dtype=float)
        found[str(method)] = distance
    return found
