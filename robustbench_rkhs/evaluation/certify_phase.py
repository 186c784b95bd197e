"""The certification phase: certificates in turn, each on the images that those before it left open."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.certificates import Certificate, portfolio
from robustbench_rkhs.certificates.pairwise import PairwiseCertificate
from robustbench_rkhs.certificates.relaxation import RelaxationCertificate
from robustbench_rkhs.data import Stream
from robustbench_rkhs.evaluation.admission import admitted
from robustbench_rkhs.evaluation.cache_key import settings_of
from robustbench_rkhs.evaluation.certificate_blocks import FIRST, cost_of, cut, refused, sized, whole
from robustbench_rkhs.evaluation.certificate_job import unproved
from robustbench_rkhs.evaluation.certified_curve import PARTS, full_cost, pays, searched, searching
from robustbench_rkhs.evaluation.phase_state import Block, Places, Work
from robustbench_rkhs.evaluation.plan import PILOT, Plan, Trial, pilot, planned
from robustbench_rkhs.evaluation.scheduler import Chain
from robustbench_rkhs.runtime.clock import Clock, OutOfTime
from robustbench_rkhs.runtime.cost import estimated
from robustbench_rkhs.runtime.multiply_adds import MultiplyAdds
from robustbench_rkhs.verdicts import Noticed, Part

SLOW = ("alpha_crown", "sdp_crown")
"""Certificates that effort `quick` skips."""


@dataclass
class CertifyPhase:
    """Runs the certificates of a recipe.

    The first runs on every image. The later ones run on correctly classified images whose radius is still below the largest
    requested eps, so that nothing is proved twice. Each row is the result of one method on one image; the radius of an image is
    the largest of them. `state_reason` of a row: empty where a radius was proved (or the image is misclassified),
    `unknown`: the method ran and proved nothing; `timeout`: not decided within `certify_seconds` or a third of the budget;
    `refused`: it has no proof for this model; `error`: it failed, or met numbers that are not finite.

    Certificates named by the user all run, in the given order. Those of the `portfolio` with a cost per image are first tried
    on a pilot of open images; then they run in the order of least counted cost, and those that decide nothing there beyond the
    others are skipped, with a message; effort `quick` skips those of SLOW. They do not run on images whose open epsilons were
    all broken by the first look.
    """

    work: Work
    attacks: Sequence[Attack] = ()
    """The protocol, whose cost decides whether radii are searched."""
    clocks: dict[str, Clock] = field(default_factory=dict)
    """Time limit of each certificate."""
    costs: dict[str, float] = field(default_factory=dict)
    """Multiply-adds per image of each certificate at the requested epsilons, as counted on the pilot."""
    curve: bool = False
    """Whether every radius was searched for up to the largest eps."""

    def all(self) -> None:
        """Every certificate of the recipe."""
        work, budget = self.work, self.work.clock.budget
        work.follower.begin("certificates")
        self.share = Clock(None if budget is None else work.clock.left() / 3)  # the attacks get the rest
        named, typed = work.recipe.certificates, work.recipe.certificates == portfolio()
        chosen = [searching(one, max(work.epsilons)) if work.recipe.curve and not typed else one for one in named]
        methods = admitted(work, dict(zip(labels(named), map(self.aimed, chosen), strict=True)))
        learnt = {}
        if typed:
            learnt = {label: method for label, method in methods.items() if method.image_by_image}
            if work.recipe.effort == "quick":
                slow = [label for label in SLOW if learnt.pop(label, None)]
                methods = {label: method for label, method in methods.items() if label not in slow}
                work.leave_out(slow, "slower than the attacks of effort quick")
        for number, (label, method) in enumerate(methods.items()):
            if label not in learnt:
                self.run(method, label, self.open() if number else np.arange(len(work.index)))
        self.curve = all(searched(method) for label, method in methods.items() if label not in learnt)
        if learnt:
            self.run_learnt(learnt)

    def aimed(self, method: Certificate) -> Certificate:
        """The certificate in the norm of the evaluation; within its box, and about the network as it is evaluated, where nobody
        chose otherwise."""
        fields = type(method).model_fields
        update: dict[str, str] = {"norm": self.work.recipe.norm} if "norm" in fields else {}
        if "box" in fields and "box" not in method.model_fields_set:
            update["box"] = self.work.box
        if isinstance(method, PairwiseCertificate | RelaxationCertificate) and "network" not in method.model_fields_set:
            update["network"] = "evaluated"
        return method.model_copy(update=update)

    def open(self) -> Places:
        """The correctly classified images that are not yet proved robust at the largest requested eps."""
        return np.flatnonzero(self.work.right & (self.work.certified < max(self.work.epsilons)))

    def unsettled(self) -> Places:
        """The correctly classified images with a requested eps that is neither certified nor broken."""
        work, some = self.work, np.zeros(len(self.work.index), dtype=bool)
        for eps in work.epsilons:
            some |= (work.certified < eps) & (eps < work.broken)
        return np.flatnonzero(work.right & some)

    def searchable(self) -> Places:
        """The correctly classified images whose radius may be larger by a step or more, up to the largest requested eps."""
        work, largest = self.work, max(self.work.epsilons)
        return np.flatnonzero(work.right & (work.certified < np.minimum(largest, work.broken - largest / PARTS)))

    def run_learnt(self, methods: dict[str, Certificate]) -> None:
        """Certificates in the order of a plan, for the requested epsilons or to a step of the curve, whichever was decided.

        All in the given order if there are no more images than in a pilot.
        """
        work, places = self.work, self.unsettled()
        tried, order = np.zeros(0, dtype=np.int64), tuple(methods)
        if len(places) > PILOT:
            tried = pilot(places, work.margins, work.index, work.recipe.seed)
            order = self.plan(methods, tried).order
        elif work.recipe.curve is None:
            for label, method in methods.items():
                here = self.unsettled()
                self.count(label, whole(self.run(method, label, here, counted=True), len(here)))
            tried, order = places, tuple(self.costs)  # what had nothing left to settle is not searched with, either
        searching_all = self.searches(order, tried)
        self.curve &= searching_all or not order
        for label in order:
            if searching_all:
                self.run(searching(methods[label], max(work.epsilons)), label, self.searchable())
            else:
                places = self.unsettled()
                self.run(methods[label], label, places[~np.isin(places, tried)])

    def count(self, label: str, part: Part | None) -> None:
        """Note the counted cost per image of a certificate at the requested epsilons, unless it was refused or not reached."""
        if part is not None and not refused(part):
            self.costs[label] = cost_of(part)

    def searches(self, order: Sequence[str], tried: Places) -> bool:
        """Whether radii are searched: as the recipe says, else where that costs less than the attacks, by what was counted."""
        work, recipe = self.work, self.work.recipe
        if recipe.curve is not None:
            return recipe.curve and max(work.epsilons) > 0
        costs = {label: self.costs[label] for label in order if label in self.costs}
        if recipe.budget is not None or not costs:
            return False
        return pays(costs, len(self.searchable()), work.epsilons, self.attack_cost(tried) * len(self.unsettled()))

    def attack_cost(self, tried: Places) -> float:
        """Multiply-adds that the protocol takes per open image: its first minimal-norm attack is counted on the pilot, whose images
        that it does not break within the largest eps count for the fixed-budget attacks."""
        work, surviving, passes = self.work, 1.0, 0.0
        split, near = work.subject.split, next((one for one in self.attacks if one.minimal_norm), None)
        if near is not None:
            aimed = near.aimed(norm=work.recipe.norm, eps=None, seed=work.recipe.seed)
            with work.follower.step("certificates", f"pilot:{aimed.label}", len(tried)):
                table = work.scheduler.one(work.attack(aimed, f"pilot:{aimed.label}", tried)).table
            surviving = float((table["radius"] > max(work.epsilons)).mean())
            passes = float((table["forwards"] + 2 * table["backwards"]).mean())
        with MultiplyAdds() as counted, torch.no_grad():
            work.subject.model(split.x[:1])
        return (counted.count or estimated(work.subject.model, split.shape)) * (passes + surviving * full_cost(self.attacks))

    def plan(self, methods: Mapping[str, Certificate], tried: Places) -> Plan:
        """The plan from the pilot: decided once, and read again after a resumption. The pilot's rows count like any others."""
        work, before = self.work, self.work.certified[tried].tolist()
        parts = {label: whole(self.run(method, label, tried, counted=True), len(tried)) for label, method in methods.items()}
        for label, part in parts.items():
            self.count(label, part)
        settings = {label: settings_of(method) for label, method in methods.items()}
        job = work.plan(tried, {"epsilons": work.epsilons, "before": before, "certificates": settings})
        if work.scheduler.store.open(job) is not None:
            trials = [trial(label, part) for label, part in parts.items() if part is not None]
            if len(trials) < len(methods):
                return Plan(tuple(methods), ())  # no time for the pilot: run as many as possible
            work.scheduler.store.put(job, decision(work, planned(trials, work.epsilons, before)))
        plan = Plan(**{name: tuple(labels) for name, labels in work.scheduler.store.take(job).noticed.decided.items()})
        work.leave_out(plan.left_out, f"settled nothing beyond the others on {len(tried)} images of a pilot")
        return plan

    def run(self, certify: Certificate, label: str, places: Places, counted: bool = False) -> list[Part]:
        """One certificate on these images, in blocks if its cost is per image; the results of those reached in time.

        The cost per image is counted on the first block: it decides how many images the others have. Each block is kept once it is
        done. `counted`: the cost of the others is counted, too.
        """
        if not len(places):
            return []
        work, own = self.work, self.clocks.setdefault(label, Clock(self.work.recipe.certify_seconds))
        most, apart = work.recipe.block, certify.image_by_image
        size = min(FIRST, most) if apart else most if isinstance(work.subject.split.x, Stream) else len(places)
        blocks = cut(places, size)
        found: dict[int, Part] = {}

        def block(number: int) -> Chain:
            left = min(own.left(), self.share.left())
            if left <= 0:
                raise OutOfTime
            given = {"counted": True} if counted or (apart and not number) else {}
            found[number] = yield work.certify(certify, label, blocks[number], left if math.isfinite(left) else None, **given)

        late = False
        try:
            with work.follower.step("certificates", label, len(places)) as step:
                work.advance(step, [block(0)], blocks[:1])  # the first alone: a refusal concerns the model, not these images
                if apart:
                    blocks = [blocks[0], *cut(places[len(blocks[0]) :], sized(found[0], most))]
                if refused(found[0]):
                    unasked = [work.certify(certify, label, some) for some in blocks[1:]]
                    work.tables += [unproved(work.subject, job, "refused") for job in unasked]
                else:
                    work.advance(step, (block(number) for number in range(1, len(blocks))), blocks[1:])
        except OutOfTime:
            late = True  # images that were not reached have rows that say so
        finally:  # interrupted: keep the results so far
            self.note(found, blocks)
            if late:
                missing = [some for number, some in enumerate(blocks) if number not in found]
                for some in missing:
                    work.tables.append(unproved(work.subject, work.certify(certify, label, some), "timeout"))
        return [found[number] for number in sorted(found)]

    def note(self, found: Mapping[int, Part], blocks: Sequence[Block]) -> None:
        """Merge the results into the knowledge about images, in the order of the blocks; radius 0 claims nothing."""
        certified = self.work.certified
        for number in sorted(found):
            self.work.note(found[number])
            radius = found[number].table["radius"].to_numpy(dtype=np.float64)
            certified[blocks[number]] = np.maximum(certified[blocks[number]], np.where(radius > 0, radius, -1.0))
            if refused(found[number]):
                break


def labels(certificates: Sequence[Certificate]) -> list[str]:
    """The certificates' names in tables; numbered where two share one."""
    names = [one.label for one in certificates]
    return [f"{name}#{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def trial(label: str, part: Part) -> Trial:
    """The pilot's result of a certificate, from its part."""
    return Trial(label, cost_of(part), tuple(part.table["radius"].tolist()), refused(part))


def decision(work: Work, plan: Plan) -> Part:
    """A plan as a job's result."""
    nothing = work.subject.rows(work.subject.positions(()), ())
    return Part(nothing, Noticed(decided={"order": list(plan.order), "left_out": list(plan.left_out)}))
