"""The protocol of an engine: jobs are submitted, results come back in any order."""

import os
import socket
from typing import NamedTuple, Protocol, runtime_checkable

from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.runtime.heartbeat import Meter
from robustbench_rkhs.verdicts import Part


class Place(NamedTuple):
    """A process of a machine."""

    host: str
    pid: int

    @classmethod
    def here(cls) -> "Place":
        """This process."""
        return cls(socket.gethostname(), os.getpid())


class Outcome(NamedTuple):
    """A job that ended, with a result or an exception."""

    job: Job
    found: Part | BaseException | None
    """None: another process has stored it."""
    place: Place | None = None
    """Where it was computed; None where it was not."""
    seconds: float = 0.0
    """How long that took, on the clock of the engine."""


@runtime_checkable
class Engine(Protocol):
    """Computes jobs. Results do not depend on the engine."""

    width: int
    """Number of jobs that it works on at once: more need not be submitted."""

    def submit(self, job: Job) -> None:
        """Take a job. Returns at once."""

    def result(self) -> Outcome:
        """Waits for the next job that ends and returns it. Where a worker is killed, another one takes its place and its
        job; a job that two workers did not survive ends with a WorkerKilled."""

    def under_way(self) -> list[tuple[Job, Meter]]:
        """The jobs that are computed now, and how far each has come."""

    def stop(self) -> None:
        """Cancel running jobs and clean up."""
