"""The engine on this machine: jobs in this process, in several processes, or in one process per device."""

import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from robustbench_rkhs.evaluation.engines.base import Engine, Outcome
from robustbench_rkhs.evaluation.engines.worker import Work, serve
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.events import Event, emit
from robustbench_rkhs.runtime.heartbeat import EVERY, Meter, beat, metered

LOST = "a worker was killed, out of memory perhaps; the same command goes on from here"


class InProcess:
    """This process alone: a job is computed when its result is asked for."""

    width = 1

    def __init__(self, work: Work) -> None:
        self.work, self._queue = work, deque[Job]()
        self._now: list[tuple[Job, Meter]] = []

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def result(self) -> Outcome:
        job = self._queue.popleft()
        with metered() as meter:
            self._now = [(job, meter)]
            try:
                return Outcome(job, self.work(job))
            except (Exception, OutOfTime) as error:
                return Outcome(job, error)
            finally:
                self._now = []

    def under_way(self) -> list[tuple[Job, Meter]]:
        return self._now

    def stop(self) -> None:
        self._queue.clear()


class Processes:
    """A process for each of `makes`, which makes there what computes jobs. They end with this process, however it ends.

    `method`: `fork` shares what is in memory; `spawn` for devices, to which a forked process has no access. A job that cannot be
    sent (it holds an object of somebody else's) is computed by `work` in this process.
    """

    def __init__(self, makes: Sequence[Callable[[], Work]], work: Work, method: str = "fork") -> None:
        context: Any = multiprocessing.get_context(method)
        self._here = InProcess(work)
        self._busy: dict[Connection, tuple[Job, Meter]] = {}
        self._idle: list[Connection] = []
        self._processes: list[Any] = []
        for make in makes:
            ours, theirs = context.Pipe()
            others = [*self._idle, ours] if method == "fork" else []
            process = context.Process(target=serve, args=(make, theirs, os.getpid(), others), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._idle.append(ours)
        self.width = len(makes)
        for pipe in list(self._idle):
            if problem := self._received(pipe):
                self.stop()
                raise UserError(str(problem))

    def submit(self, job: Job) -> None:
        try:
            message = pickle.dumps(job)
        except Exception:  # whatever somebody else's object raises
            self._here.submit(job)
            return
        pipe = self._idle.pop()
        self._busy[pipe] = job, Meter()
        try:
            pipe.send_bytes(message)
        except OSError:
            raise UserError(LOST) from None

    def result(self) -> Outcome:
        if self._here._queue:
            return self._here.result()
        while True:
            ready = next((pipe for pipe in wait(list(self._busy), EVERY) if isinstance(pipe, Connection)), None)
            beat()
            if ready is None:
                continue
            found = self._received(ready)
            if isinstance(found, Meter):
                self._busy[ready] = self._busy[ready][0], found
            elif isinstance(found, Event):
                emit(found)
            else:
                self._idle.append(ready)
                return Outcome(self._busy.pop(ready)[0], found)

    def under_way(self) -> list[tuple[Job, Meter]]:
        return [*self._busy.values(), *self._here.under_way()]

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        for pipe in [*self._idle, *self._busy]:
            pipe.close()
        self._idle, self._busy = [], {}

    def _received(self, pipe: Any) -> Any:
        try:
            return pickle.loads(pipe.recv_bytes())  # from a process of our own
        except (EOFError, OSError):
            raise UserError(LOST) from None


@contextmanager
def started(work: Work, workers: int | None, device: str, make: Callable[[str], Callable[[], Work]]) -> Iterator[Engine]:
    """The engine of an evaluation: this process where `workers` is None or 1, else so many, on one thread each.

    On a CPU they share what is in memory; on GPUs each has a device, in turn, and what `make(device)` makes there. Raises
    UserError where there can be none.
    """
    count, kind = workers or 1, torch.device(device).type
    if count > 1 and kind not in ("cpu", "cuda"):
        raise UserError(f"workers compute on a CPU or on GPUs, found device {device!r}: leave out workers")
    engine: Engine = InProcess(work)
    try:
        if count > 1 and kind == "cuda":
            devices = [device] if ":" in device else [f"cuda:{number}" for number in range(torch.cuda.device_count())]
            engine = Processes([make(devices[number % len(devices)]) for number in range(count)], work, "spawn")
        elif count > 1 and "fork" in multiprocessing.get_all_start_methods():
            engine = Processes([lambda: work] * count, work)
        elif count > 1:
            engine = Processes([make(device)] * count, work, "spawn")
        yield engine
    finally:
        engine.stop()
