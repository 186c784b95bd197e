"""The engine of ranks: several processes run one evaluation, and each takes the jobs that no other computes yet."""

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from robustbench_rkhs.evaluation.engines.base import Outcome
from robustbench_rkhs.evaluation.engines.here import InProcess
from robustbench_rkhs.evaluation.engines.worker import Work
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.store import Store
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.runtime.heartbeat import Meter, beat
from robustbench_rkhs.runtime.locks import Claim, claimed
from robustbench_rkhs.runtime.object_store import RemoteClaim

NAP, REMOTE = 0.2, 2.0
"""Seconds between two looks for a job or a result while all open jobs are computed elsewhere: in a folder, and by URL."""
VARIABLES = (("RKHS_RANK", "RKHS_RANKS"), ("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
"""Environment variables of rank and number of ranks: of a job array of ours, torchrun, srun."""


class Rank(NamedTuple):
    """A process of several that run the same command."""

    number: int
    world: int
    """How many there are."""

    @classmethod
    def mine(cls, environment: Mapping[str, str] = os.environ) -> "Rank":
        """Of this process, as its launcher says. Raises UserError where nobody launched it."""
        for number, count in VARIABLES:
            if number in environment and count in environment:
                found = environment[number], environment[count]
                if not all(text.isascii() and text.isdigit() for text in found) or int(found[0]) >= int(found[1]):
                    raise UserError(f"expected {number} from 0 to below {count}, found {found[0]!r} and {found[1]!r}")
                return cls(int(found[0]), int(found[1]))
        told = "torchrun --nproc-per-node 2 --no-python rkhs-eval ..., or srun rkhs-eval ..."
        raise UserError(f"this process has no rank: start it by {told}; found neither RANK nor SLURM_PROCID")


class Ranks:
    """Computes what no other rank has in hand. All ranks submit the same jobs; a result of another is read from the store.

    A lock beside the parts says who computes a job. The kernel releases it when that process ends, and on other machines it counts
    as left behind after ten minutes without a refresh: the job is then taken over. Where parts are exchanged by URL, the lock is a
    claim there. Predictions are asked by each rank itself: they
    are never stored. No rank waits while there is an open job that nobody computes.
    """

    def __init__(self, work: Work, store: Store, folder: Path, world: int) -> None:
        """`folder`: of the locks, on the disk that the ranks share."""
        self.width = 4 * world
        self._store, self._folder = store, folder
        self._here = InProcess(work)
        self._shared: dict[str, tuple[Job, float]] = {}
        """Jobs that any rank may compute, by name, and when they were submitted."""
        self._own = deque[Job]()
        """Jobs that this rank computes whatever the others do."""
        self._claim: Claim | RemoteClaim | None = None

    def submit(self, job: Job) -> None:
        if job.phase == "predict" or self._store.open(job) is None:  # what is stored and asked again is replayed
            self._own.append(job)
        else:
            self._shared[job.name] = job, time.monotonic()

    def result(self) -> Outcome:
        self._release()
        if self._own:
            return self._computed(self._own.popleft())
        while True:
            for name, (job, since) in list(self._shared.items()):
                if (outcome := self._tried(job)) is None and job.seconds is not None and time.monotonic() - since > job.seconds:
                    outcome = Outcome(job, OutOfTime())  # another rank has it, and the time of this one is over
                if outcome is not None:
                    del self._shared[name]
                    return outcome
            beat()
            time.sleep(REMOTE if self._store.exchange else NAP)

    def under_way(self) -> list[tuple[Job, Meter]]:
        return self._here.under_way()

    def stop(self) -> None:
        self._release()
        self._here.stop()
        self._shared.clear()
        self._own.clear()

    def _tried(self, job: Job) -> Outcome | None:
        """The job's outcome, computed here if it is open; None where another rank computes it now."""
        if self._store.elsewhere(job):
            return Outcome(job, None)
        self._claim = self._claimed(job)
        if self._claim is None:
            return None
        if self._store.elsewhere(job):  # stored between the two looks
            self._release()
            return Outcome(job, None)
        return self._computed(job)

    def _claimed(self, job: Job) -> Claim | RemoteClaim | None:
        if self._store.exchange:
            return self._store.exchange.claimed(job.name)
        try:
            return claimed(self._folder / f".{job.name}.lock", job.label)
        except OSError as error:
            raise Unwritable(f"cannot write {self._folder}, where ranks say what they compute: {error.strerror}") from None

    def _computed(self, job: Job) -> Outcome:
        self._here.submit(job)
        return self._here.result()

    def _release(self) -> None:
        """Give the last job's lock up: its result has been stored meanwhile."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None
