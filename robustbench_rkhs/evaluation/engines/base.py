"""The protocol of an engine: jobs are submitted, results come back in any order."""

from typing import NamedTuple, Protocol, runtime_checkable

from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.verdicts import Part


class Outcome(NamedTuple):
    """A job that ended: with a result, or with what it raised."""

    job: Job
    found: Part | BaseException


@runtime_checkable
class Engine(Protocol):
    """Computes jobs somewhere. What a result is does not depend on which engine computes it."""

    width: int
    """Jobs it works on at once: more need not be submitted."""

    def submit(self, job: Job) -> None:
        """Take a job. Returns at once."""

    def result(self) -> Outcome:
        """The next job that ended; waits for it. Raises UserError where a worker was lost."""

    def stop(self) -> None:
        """Give up what is under way and leave nothing behind."""
