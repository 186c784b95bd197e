"""Certifying the images of a job: radii, or reasons for no proof, as rows of the table."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch

from robustbench_rkhs.certificates import Certificate, Certified
from robustbench_rkhs.evaluation.halving import out_of_memory
from robustbench_rkhs.evaluation.interrupted import Interrupted
from robustbench_rkhs.evaluation.jobs import Job, divisible
from robustbench_rkhs.evaluation.own_method import checked_certified, fenced
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.clock import holding
from robustbench_rkhs.runtime.multiply_adds import MultiplyAdds
from robustbench_rkhs.verdicts import Noticed, Part


def certify_images(subject: Subject, job: Job) -> Part:
    """A radius for each image of a job. Refusals and failures give rows without a radius, with their reason noted.

    Raises Interrupted, with what is proved so far, after an interruption inside a search for radii.
    With `given: counted`, the part contains the cost in multiply-adds.
    """
    begun = time.perf_counter()
    with MultiplyAdds() if job.given.get("counted") else nullcontext() as cost, holding() as held:
        found, words = _attempt(subject, job)
    took = (time.perf_counter() - begun) / max(len(job.index), 1)
    noticed = Noticed(refused=tuple(words))
    if cost is not None:
        noticed = noticed.model_copy(update={"decided": {"multiply_adds": cost.count}})
    part = Part(_rows(subject, job, found, took), noticed)
    if held.interruption is not None:
        raise Interrupted(part) from held.interruption
    return part


def unproved(subject: Subject, job: Job, reason: str) -> pd.DataFrame:
    """The rows of a job that was not computed: `refused`, or `timeout` where there was no time for it."""
    return _rows(subject, job, _nothing(len(job.index), reason), 0.0)


def _attempt(subject: Subject, job: Job) -> tuple[Certified, Sequence[str]]:
    certify, split, positions = job.method, subject.split, subject.positions(job.index)
    assert isinstance(certify, Certificate)
    if job.norm not in certify.norms:
        return _nothing(len(positions), "refused"), [f"{job.label}: it certifies {' and '.join(sorted(certify.norms))} only"]
    try:
        with fenced(certify, subject.model):
            given = (split.x[positions], split.y[positions], split.index[positions], job.given["epsilons"])
            found = certify(subject.model, *given)
        found = checked_certified(found, len(positions))
    except Uncertifiable as refusal:
        return _nothing(len(positions), "refused"), [f"{job.label}: {refusal}"]
    except UserError:
        raise
    except Exception as error:  # an error of a method becomes a row and does not end the evaluation
        if out_of_memory(error) and len(positions) > 1 and divisible(certify):
            raise  # fewer at once are tried
        return _nothing(len(positions), "error"), [f"{job.label} failed: {cause(error)}"]
    right = [said == label for said, label in zip(job.predicted, split.y[positions].tolist(), strict=True)]
    reasons = [
        "unknown" if not reason and was_right and radius <= 0 else reason
        for reason, was_right, radius in zip(found.reason, right, found.radius.tolist(), strict=True)
    ]
    return found._replace(reason=reasons), []


def _rows(subject: Subject, job: Job, found: Certified, seconds: float) -> pd.DataFrame:
    assert isinstance(job.method, Certificate)
    forwards: Any = 1 if found.forwards is None else found.forwards.cpu().numpy()
    return subject.rows(
        subject.positions(job.index),
        job.predicted,
        norm=job.norm,
        box=job.box,
        method=job.label,
        settings=job.settings,
        state_reason=found.reason,
        radius=found.radius.cpu().numpy(),
        forwards=forwards,
        seconds=seconds,
        arithmetic=found.arithmetic or job.method.arithmetic,
        failure_probability=found.failure_probability.cpu().numpy(),
    )


def _nothing(images: int, reason: str) -> Certified:
    zeros = torch.zeros(images, dtype=torch.float64)
    return Certified(zeros, [reason] * images, zeros.clone(), torch.zeros(images, dtype=torch.int64))
