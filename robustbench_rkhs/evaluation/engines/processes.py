"""The engine of several processes on this machine, or of one process per device."""

import pickle
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

from robustbench_rkhs.evaluation.engines.base import Outcome, Place
from robustbench_rkhs.evaluation.engines.here import InProcess
from robustbench_rkhs.evaluation.engines.pool import HINT, Pool
from robustbench_rkhs.evaluation.engines.worker import Work
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.events import Event, emit
from robustbench_rkhs.runtime.heartbeat import EVERY, Meter, beat


class Processes:
    """A process for each of `makes`, which makes there what computes jobs. They end with this process, however it ends.

    `method`: `fork` shares what is in memory; `spawn` for devices, to which a forked process has no access. A job that cannot be
    sent (it holds an object of somebody else's) is computed by `work` in this process. A worker that is killed (for memory, say)
    is replaced, and its job computed once more, when no other one is: it has the memory alone, and the result is the same.
    """

    def __init__(self, makes: Sequence[Callable[[], Work]], work: Work, method: str = "fork") -> None:
        self._here = InProcess(work)
        self._busy: dict[Connection, tuple[Job, Meter]] = {}
        self._begun: dict[str, float] = {}
        """When each running job was begun, by its name."""
        self._again = deque[Job]()
        """Jobs whose worker was killed."""
        self._lost_once = set[str]()
        """The names of all such jobs so far."""
        self.width = len(makes)
        self._pool = Pool(makes, method)

    def submit(self, job: Job) -> None:
        if (message := self._here.packed(job)) is not None:
            pipe = self._pool.sent(message)
            self._busy[pipe], self._begun[job.name] = (job, Meter()), time.monotonic()

    def result(self) -> Outcome:
        while True:
            if self._here.waiting:
                return self._here.result()
            if self._again and not self._busy:
                self.submit(self._again.popleft())
            ready = next((pipe for pipe in wait(list(self._busy), EVERY) if isinstance(pipe, Connection)), None)
            beat()
            if ready is None:
                continue
            try:
                found = pickle.loads(ready.recv_bytes())  # from a process of our own
            except (EOFError, OSError):
                if given_up := self._lost(ready):
                    return given_up
                continue
            if isinstance(found, Meter):
                self._busy[ready] = self._busy[ready][0], found
            elif isinstance(found, Event):
                emit(found)
            else:
                self._pool.rest(ready)
                job, _ = self._busy.pop(ready)
                place = Place(socket.gethostname(), self._pool.pid(ready))
                return Outcome(job, found, place, time.monotonic() - self._begun.pop(job.name))

    def under_way(self) -> list[tuple[Job, Meter]]:
        return [*self._busy.values(), *self._here.under_way()]

    def stop(self) -> None:
        self._pool.stop()
        self._busy = {}
        self._again.clear()

    def _lost(self, pipe: Connection) -> Outcome | None:
        """After a worker was killed: start another. Its job is put off, or given up if it was the second to die of it."""
        (job, _), ending = self._busy.pop(pipe), self._pool.ending(pipe)
        self._pool.replace(pipe)
        if job.name not in self._lost_once:
            self._lost_once.add(job.name)
            self._again.append(job)
            return None
        images = f"{len(job.index)} images from {min(job.index, default=0)} to {max(job.index, default=0)}"
        return Outcome(
            job, WorkerKilled(f"{job.label} on {images} was given up: both workers that tried it ended, the last {ending}{HINT}")
        )
