"""The certification phase: certificates in turn, each on the images that those before it left open."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustbench_rkhs.certificates import Certificate, Certified
from robustbench_rkhs.data import Stream
from robustbench_rkhs.evaluation.cache_key import settings_of
from robustbench_rkhs.evaluation.own_method import checked_certified, fenced
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.evaluation.tables import Tables
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.messages import Say
from robustbench_rkhs.verdicts import Noticed, Part


@dataclass
class CertifyPhase:
    """Runs the certificates of a recipe; keeps what each proved and why others did not.

    The first runs on every image. Those after it run on images that are right and whose radius is still below the largest
    asked-for eps: what a cheaper one has settled is not proved twice. Each row says what one method found on one image; the
    radius of an image is the largest of them. `state_reason` of a row: empty where a radius was proved (or the image is wrong),
    `unknown`: the method ran and proved nothing; `timeout`: it was not reached within `certify_seconds`; `refused`: it has no
    proof for this model; `error`: it failed, or met numbers that are not finite.
    """

    subject: Subject
    recipe: EvalRecipe
    box: str
    input_digests: list[str]
    predicted: Tensor
    say: Say
    tables: list[pd.DataFrame] = field(default_factory=Tables)
    """One table a finished job."""
    refused: list[str] = field(default_factory=list)
    """Why certificates were refused, or failed."""
    until: float = math.inf
    """Moment (of the monotonic clock) after which no further block is begun."""

    def __post_init__(self) -> None:
        self.certified = torch.full((len(self.subject.split),), -1.0, dtype=torch.float64, device=self.subject.device)
        """Largest proved radius of each image; -1 where nothing is claimed."""

    @property
    def labels(self) -> list[str]:
        """The certificates' names in tables; numbered where two share one."""
        names = [one.label for one in self.recipe.certificates]
        return [f"{name}#{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]

    def all(self) -> None:
        """Every certificate of the recipe, in its order."""
        for number, (method, label) in enumerate(zip(self.recipe.certificates, self.labels, strict=True)):
            certify = method.model_copy(update={"norm": self.recipe.norm}) if "norm" in type(method).model_fields else method
            self.run(certify, label, self.open() if number else torch.arange(len(self.certified)))

    def open(self) -> Tensor:
        """Positions of the images that are right and not yet proved robust at the largest asked-for eps."""
        split = self.subject.split
        right = (self.predicted == split.y).cpu()
        return (right & (self.certified.cpu() < max(self.recipe.eps))).nonzero().flatten()

    def run(self, certify: Certificate, label: str, positions: Tensor) -> None:
        """One certificate on these images, in blocks where its cost is each image's own."""
        started, limit = time.monotonic(), self.recipe.certify_seconds
        settings = settings_of(certify)
        apart = certify.image_by_image or isinstance(self.subject.split.x, Stream)
        blocks: Sequence[Tensor] = positions.split(self.recipe.block) if apart else [positions]
        for block in blocks:
            if not len(block):
                continue
            block = block.to(self.subject.device)
            if time.monotonic() > min(self.until, math.inf if limit is None else started + limit):
                self.tables.append(self.rows(block, label, settings, certify, _nothing(len(block), "timeout"), 0.0))
                continue
            key = {"job": "certificate", "method": label, "settings": settings, "norm": self.recipe.norm, "box": self.box}
            # what a certificate may stop at is part of what it found
            key["epsilons"] = ",".join(repr(float(eps)) for eps in sorted(set(self.recipe.eps)))

            def work(block: Tensor = block) -> Part:
                begun = time.perf_counter()
                found, words = self.attempt(certify, label, block)
                took = (time.perf_counter() - begun) / len(block)
                return Part(self.rows(block, label, settings, certify, found, took), Noticed(refused=tuple(words)))

            done = self.subject.part(key, block, work)
            self.note(done.noticed.refused)
            self.tables.append(done.table)
            radius = torch.as_tensor(done.table["radius"].to_numpy(dtype=np.float64, copy=True)).to(self.certified)
            claimed = torch.where(radius > 0, radius, -1.0)  # radius 0 claims nothing that could be broken
            self.certified[block] = torch.maximum(self.certified[block], claimed)
            if (done.table["state_reason"] == "refused").all():
                break  # it refuses the model, not these images

    def attempt(self, certify: Certificate, label: str, block: Tensor) -> tuple[Certified, list[str]]:
        """What the certificate says of these images; a refusal and a failure say nothing, with their reason."""
        split = self.subject.split
        if self.recipe.norm not in certify.norms:
            return _nothing(len(block), "refused"), [f"{label}: it certifies {' and '.join(sorted(certify.norms))} only"]
        try:
            with fenced(certify, self.subject.model):
                found = certify(self.subject.model, split.x[block], split.y[block], split.index[block], self.recipe.eps)
            found = checked_certified(found, len(block))
        except Uncertifiable as refusal:
            return _nothing(len(block), "refused"), [f"{label}: {refusal}"]
        except UserError:
            raise
        except Exception as error:  # a method's fault is a row, not the end of the evaluation
            words = f"{label} failed: {cause(error)}"
            return _nothing(len(block), "error"), [words]
        right = (self.predicted[block] == split.y[block]).cpu()
        reasons = [
            "unknown" if not reason and was_right and radius <= 0 else reason
            for reason, was_right, radius in zip(found.reason, right.tolist(), found.radius.tolist(), strict=True)
        ]
        return found._replace(reason=reasons), []

    def rows(
        self, block: Tensor, label: str, settings: str, certify: Certificate, found: Certified, seconds: float
    ) -> pd.DataFrame:
        forwards: Any = 1 if found.forwards is None else found.forwards.cpu().numpy()
        return self.subject.rows(
            block,
            self.predicted,
            self.input_digests,
            norm=self.recipe.norm,
            box=self.box,
            method=label,
            settings=settings,
            state_reason=found.reason,
            radius=found.radius.cpu().numpy(),
            forwards=forwards,
            seconds=seconds,
            arithmetic=certify.arithmetic,
            failure_probability=found.failure_probability.cpu().numpy(),
        )

    def note(self, words: Sequence[str]) -> None:
        for line in words:
            if line not in self.refused:
                self.refused.append(line)
                self.say(f"no certificate: {line}")

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return iter(self.tables)


def _nothing(images: int, reason: str) -> Certified:
    zeros = torch.zeros(images, dtype=torch.float64)
    return Certified(zeros, [reason] * images, zeros.clone(), torch.zeros(images, dtype=torch.int64))
