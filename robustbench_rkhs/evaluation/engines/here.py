"""The engine on this machine: jobs in this process, in several processes, or in one process per device."""

import multiprocessing
import os
import pickle
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from robustbench_rkhs.evaluation.engines.base import Outcome, Place
from robustbench_rkhs.evaluation.engines.worker import Work, serve
from robustbench_rkhs.evaluation.interrupted import Interrupted
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import WorkerKilled, keyboard_held
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.events import Event, emit
from robustbench_rkhs.runtime.heartbeat import EVERY, Meter, beat, metered
from robustbench_rkhs.verdicts import Part

HINT = "; with fewer --workers or a smaller --block each has more memory, and the same command goes on from here"
STARTS = 3
"""A worker that is killed as it starts is started again, up to so many times in all."""


class Worker(NamedTuple):
    """A process, and what it was made with."""

    process: Any
    make: Callable[[], Work]

    def killed(self) -> bool:
        """Whether it was ended by a signal."""
        self.process.join(5)
        return (self.process.exitcode or 0) < 0

    def ending(self) -> str:
        """How it ended, in words."""
        self.process.join(5)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"by itself (exit code {code})"
        name = signal.Signals(-code).name
        return "killed (out of memory perhaps)" if name == "SIGKILL" else f"by {name}"


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


class Processes:
    """A process for each of `makes`, which makes there what computes jobs. They end with this process, however it ends.

    `method`: `fork` shares what is in memory; `spawn` for devices, to which a forked process has no access. A job that cannot be
    sent (it holds an object of somebody else's) is computed by `work` in this process. A worker that is killed (for memory, say)
    is replaced, and its job computed once more, when no other one is: it has the memory alone, and the result is the same.
    """

    def __init__(self, makes: Sequence[Callable[[], Work]], work: Work, method: str = "fork") -> None:
        self._context: Any = multiprocessing.get_context(method)
        self._here = InProcess(work)
        self._workers: dict[Connection, Worker] = {}
        self._busy: dict[Connection, tuple[Job, Meter]] = {}
        self._begun: dict[str, float] = {}
        """When each running job was begun, by its name."""
        self._idle: list[Connection] = []
        self._again = deque[Job]()
        """Jobs whose worker was killed."""
        self._lost_once = set[str]()
        """The names of all such jobs so far."""
        self.width = len(makes)
        for make in makes:
            self._start(make)
        for pipe in list(self._idle):
            self._check(pipe)

    def submit(self, job: Job) -> None:
        try:
            message = pickle.dumps(job)
        except Exception:  # whatever somebody else's object raises
            self._here.submit(job)
            return
        pipe = self._idle.pop()
        try:
            pipe.send_bytes(message)
        except OSError:  # killed while it had nothing to do
            self._replaced(pipe)
            pipe = self._idle.pop()
            pipe.send_bytes(message)
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
                self._idle.append(ready)
                job, _ = self._busy.pop(ready)
                place = Place(socket.gethostname(), self._workers[ready].process.pid)
                return Outcome(job, found, place, time.monotonic() - self._begun.pop(job.name))

    def under_way(self) -> list[tuple[Job, Meter]]:
        return [*self._busy.values(), *self._here.under_way()]

    def stop(self) -> None:
        for worker in self._workers.values():
            worker.process.terminate()
        for pipe, worker in self._workers.items():
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
            pipe.close()
        self._workers, self._idle, self._busy = {}, [], {}
        self._again.clear()

    def _start(self, make: Callable[[], Work]) -> Connection:
        """Start a worker; the pipe to it."""
        ours: Connection
        ours, theirs = self._context.Pipe()
        others = [*self._workers, ours] if self._context.get_start_method() == "fork" else []
        process = self._context.Process(target=serve, args=(make, theirs, os.getpid(), others), daemon=True)
        with keyboard_held():
            process.start()
        theirs.close()
        self._workers[ours] = Worker(process, make)
        self._idle.append(ours)
        return ours

    def _check(self, pipe: Connection) -> None:
        """Wait until a worker has begun; one that is killed as it starts is started again. Raises UserError where it cannot work,
        WorkerKilled where it ended by itself or was killed `STARTS` times."""
        for start in range(STARTS):
            try:
                problem = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                dead = self._workers[pipe]
                if start == STARTS - 1 or not dead.killed():
                    self.stop()
                    raise WorkerKilled(f"a worker ended as it started, {dead.ending()}{HINT}") from None
                self._forget(pipe)
                pipe = self._start(dead.make)
            else:
                break
        if problem:
            self.stop()
            raise UserError(str(problem))

    def _lost(self, pipe: Connection) -> Outcome | None:
        """After a worker was killed: start another. Its job is put off, or given up if it was the second to die of it."""
        (job, _), ending = self._busy.pop(pipe), self._workers[pipe].ending()
        self._replaced(pipe)
        if job.name not in self._lost_once:
            self._lost_once.add(job.name)
            self._again.append(job)
            return None
        images = f"{len(job.index)} images from {min(job.index, default=0)} to {max(job.index, default=0)}"
        return Outcome(
            job, WorkerKilled(f"{job.label} on {images} was given up: both workers that tried it ended, the last {ending}{HINT}")
        )

    def _replaced(self, pipe: Connection) -> None:
        """Start a worker, idle as yet, in the place of a dead one."""
        dead = self._workers[pipe]
        self._forget(pipe)
        self._check(self._start(dead.make))

    def _forget(self, pipe: Connection) -> None:
        """Close the pipe of a dead worker."""
        del self._workers[pipe]
        pipe.close()
        if pipe in self._idle:
            self._idle.remove(pipe)
