"""The engine in this process: a job is computed when its result is asked for."""

import pickle
import time
from collections import deque

from robustbench_rkhs.evaluation.engines.base import Outcome, Place
from robustbench_rkhs.evaluation.engines.worker import Work
from robustbench_rkhs.evaluation.interrupted import Interrupted
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.heartbeat import Meter, metered
from robustbench_rkhs.verdicts import Part


class InProcess:
    """This process alone: a job is computed when its result is asked for."""

    width = 1

    def __init__(self, work: Work) -> None:
        self.work, self._queue = work, deque[Job]()
        self._now: list[tuple[Job, Meter]] = []

    @property
    def waiting(self) -> bool:
        """Whether a job was submitted whose result nobody asked for yet."""
        return bool(self._queue)

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def packed(self, job: Job) -> bytes | None:
        """The job for another process; None where it cannot be sent, and is computed here."""
        try:
            return pickle.dumps(job)
        except Exception:  # whatever somebody else's object raises
            self.submit(job)
            return None

    def result(self) -> Outcome:
        job, started = self._queue.popleft(), time.monotonic()
        found: Part | BaseException
        with metered() as meter:
            self._now = [(job, meter)]
            try:
                found = self.work(job)
            except (Exception, OutOfTime, Interrupted) as error:
                found = error
            finally:
                self._now = []
        return Outcome(job, found, Place.here(), time.monotonic() - started)

    def under_way(self) -> list[tuple[Job, Meter]]:
        return self._now

    def stop(self) -> None:
        self._queue.clear()
