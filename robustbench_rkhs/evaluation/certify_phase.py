"""The certification phase: certificates in turn, each on the images that those before it left open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustbench_rkhs.certificates import Certificate
from robustbench_rkhs.data import Stream
from robustbench_rkhs.evaluation.admission import admitted
from robustbench_rkhs.evaluation.certifying import unproved
from robustbench_rkhs.evaluation.scheduler import Chain
from robustbench_rkhs.evaluation.work import Places, Work
from robustbench_rkhs.runtime.clock import Clock, OutOfTime
from robustbench_rkhs.verdicts import Part


@dataclass
class CertifyPhase:
    """Runs the certificates of a recipe.

    The first runs on every image. Those after it run on images that are right and whose radius is still below the largest
    asked-for eps: what a cheaper one has settled is not proved twice. Each row says what one method found on one image; the
    radius of an image is the largest of them. `state_reason` of a row: empty where a radius was proved (or the image is wrong),
    `unknown`: the method ran and proved nothing; `timeout`: it was not reached within `certify_seconds` or half the budget;
    `refused`: it has no proof for this model; `error`: it failed, or met numbers that are not finite.
    """

    work: Work

    def all(self) -> None:
        """Every certificate of the recipe, in its order."""
        recipe, budget = self.work.recipe, self.work.clock.budget
        self.half = Clock(None if budget is None else self.work.clock.left() / 2)  # the attacks have the other half
        methods = admitted(self.work, dict(zip(labels(recipe.certificates), recipe.certificates, strict=True)))
        for number, (label, method) in enumerate(methods.items()):
            certify = method.model_copy(update={"norm": recipe.norm}) if "norm" in type(method).model_fields else method
            self.run(certify, label, self.open() if number else np.arange(len(self.work.index)))

    def open(self) -> Places:
        """The images that are right and not yet proved robust at the largest asked-for eps."""
        return np.flatnonzero(self.work.right & (self.work.certified < max(self.work.epsilons)))

    def run(self, certify: Certificate, label: str, places: Places) -> None:
        """One certificate on these images, in blocks where its cost is each image's own."""
        work, own = self.work, Clock(self.work.recipe.certify_seconds)
        size = work.recipe.block if certify.image_by_image or isinstance(work.subject.split.x, Stream) else len(places)
        blocks = [places[start : start + size] for start in range(0, len(places), max(size, 1))]
        found: dict[int, Part] = {}

        def block(number: int) -> Chain:
            left = min(own.left(), self.half.left())
            if left <= 0:
                raise OutOfTime
            found[number] = yield work.certify(certify, label, blocks[number], left if math.isfinite(left) else None)

        refused = False
        try:
            for number in range(min(len(blocks), 1)):  # the first alone: a refusal is of the model, not of these images
                list(work.scheduler.run([block(number)]))
                refused = _refused(found[number])
            if not refused:
                list(work.scheduler.run(block(number) for number in range(1, len(blocks))))
        except OutOfTime:
            pass  # which images were not reached, their rows say
        for number, some in enumerate(blocks):
            if number in found:
                work.note(found[number])
                self.note(found[number], some)
                if _refused(found[number]):
                    break
            else:
                work.tables.append(unproved(work.subject, work.certify(certify, label, some), "timeout"))

    def note(self, part: Part, places: Places) -> None:
        """Fold a part's radii into what is known; radius 0 claims nothing that could be broken."""
        radius = part.table["radius"].to_numpy(dtype=np.float64)
        self.work.certified[places] = np.maximum(self.work.certified[places], np.where(radius > 0, radius, -1.0))


def labels(certificates: Sequence[Certificate]) -> list[str]:
    """The certificates' names in tables; numbered where two share one."""
    names = [one.label for one in certificates]
    return [f"{name}#{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _refused(part: Part) -> bool:
    return bool((part.table["state_reason"] == "refused").all())
