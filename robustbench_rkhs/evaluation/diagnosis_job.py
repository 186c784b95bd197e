"""Diagnosing the images of a job."""

from dataclasses import replace

import torch

from robustbench_rkhs.evaluation.diagnostics import diagnose
from robustbench_rkhs.evaluation.diagnostics.transfer import Transfer
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.verdicts import Noticed, Part


def diagnose_images(subject: Subject, job: Job, transfer: Transfer | None) -> Part:
    """Every diagnosis on all images of the job. `given`: eps, what attacks found by method, which images are certified at eps."""
    positions, split, eps = subject.positions(job.index), subject.split, float(job.given["eps"])
    done = diagnose(
        subject.queried,
        split.x[positions],
        split.y[positions],
        split.index[positions],
        norm=job.norm,
        box=job.box,
        eps=eps,
        found={name: torch.tensor([float(one) for one in far], dtype=torch.float64) for name, far in job.given["found"].items()},
        closed=torch.tensor(job.given["closed"], dtype=torch.bool),
        twin=None if transfer is None else transfer.twin,
        images=len(positions),
        seed=subject.seed,
    )
    twin = transfer.key if transfer else None
    named = tuple(replace(one, eps=eps, twin=twin if one.name == "transfer" else None) for one in done)
    return Part(subject.rows(positions[:0], ()), Noticed(diagnostics=named))
