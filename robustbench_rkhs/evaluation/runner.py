"""The runner: computes jobs on its model and images."""

from dataclasses import replace

from robustbench_rkhs.evaluation.certificate_job import certify_images
from robustbench_rkhs.evaluation.counting import attack_images
from robustbench_rkhs.evaluation.diagnosis_job import diagnose_images
from robustbench_rkhs.evaluation.diagnostics.transfer import Transfer
from robustbench_rkhs.evaluation.halving import Halving
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.predictions import raw_logits
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.runtime.clock import Clock, limited
from robustbench_rkhs.runtime.memory import FREED
from robustbench_rkhs.verdicts import Part


class Runner:
    """Computes jobs; a job that needs too much memory is computed in smaller pieces."""

    def __init__(self, subject: Subject, transfer: Transfer | None = None) -> None:
        self.subject, self.transfer, self.halving = subject, transfer, Halving()

    def __call__(self, job: Job) -> Part:
        """The result, within the time limit of the job. Raises UserError, and OutOfTime if there is no result in time."""
        if isinstance(job.method, Transfer) and self.transfer is not None:
            job = replace(job, method=job.method.on(self.transfer.twin))
        try:
            with limited(None if job.seconds is None else Clock(job.seconds)):
                if not job.divisible:
                    return self._computed(job)
                return self.halving(job.label, len(job.index), lambda places: self._computed(job.at(places)))
        finally:
            FREED.ended()

    def _computed(self, job: Job) -> Part:
        if job.phase == "attack":
            return attack_images(self.subject, job)
        if job.phase == "certify":
            return certify_images(self.subject, job)
        if job.phase == "diagnose":
            return diagnose_images(self.subject, job, self.transfer)
        if job.phase == "predict":
            return self._predictions(job)
        raise ValueError(f"no runner computes a job of phase {job.phase!r}")

    def _predictions(self, job: Job) -> Part:
        positions = self.subject.positions(job.index)
        logits = raw_logits(self.subject.queried, self.subject.split.x[positions], self.subject.split.classes)
        return Part(self.subject.rows(positions, logits.argmax(1).tolist(), norm=job.norm, box=job.box), logits=logits.cpu())
