"""The engine on this machine: jobs in this process, in several processes, or in one process per device."""

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from robustbench_rkhs.evaluation.engines.base import Engine, Outcome
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.verdicts import Part

Work = Callable[[Job], Part]
LOST = "a worker was killed, out of memory perhaps; the same command goes on from here"
NO_GRADIENTS = "workers cannot take gradients here: this process took some with an accelerator present; evaluate in a new process"


class InProcess:
    """This process alone: a job is computed when its result is asked for."""

    width = 1

    def __init__(self, work: Work) -> None:
        self.work, self._queue = work, deque[Job]()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def result(self) -> Outcome:
        job = self._queue.popleft()
        try:
            return Outcome(job, self.work(job))
        except (Exception, OutOfTime) as error:
            return Outcome(job, error)

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
        self._busy: dict[Connection, Job] = {}
        self._idle: list[Connection] = []
        self._processes: list[Any] = []
        for make in makes:
            ours, theirs = context.Pipe()
            others = [*self._idle, ours] if method == "fork" else []
            process = context.Process(target=_serve, args=(make, theirs, os.getpid(), others), daemon=True)
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
        self._busy[pipe] = job
        try:
            pipe.send_bytes(message)
        except OSError:
            raise UserError(LOST) from None

    def result(self) -> Outcome:
        if self._here._queue:
            return self._here.result()
        pipe = next(pipe for pipe in wait(list(self._busy)) if isinstance(pipe, Connection))
        found = self._received(pipe)
        self._idle.append(pipe)
        return Outcome(self._busy.pop(pipe), found)

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
def started(work: Work, workers: int | None, device: str) -> Iterator[Engine]:
    """The engine of an evaluation: this process where `workers` is None or 1, else so many that share the model in memory.

    Where a number is given, every process computes on one thread, so that what is found depends on no number of workers. Raises
    UserError where processes cannot share a model as it is in memory.
    """
    if workers is None:
        yield InProcess(work)
        return
    cpu = torch.device(device).type == "cpu"
    if workers > 1 and not (cpu and "fork" in multiprocessing.get_all_start_methods()):
        line = f"workers share the model in the memory of a CPU, found device {device!r}: leave out workers, or use the CPU"
        raise UserError(line)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # before they are made: they inherit no threads
    engine: Engine | None = None
    try:
        engine = InProcess(work) if workers == 1 else Processes([lambda: work] * workers, work)
        yield engine
    finally:
        if engine is not None:
            engine.stop()
        torch.set_num_threads(threads)


def end_with(parent: int) -> None:
    """End this process when its parent does, however that ends: asked of the kernel on Linux, and looked for once a second."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _serve(make: Callable[[], Work], pipe: Any, parent: int, others: Sequence[Any]) -> None:
    """A worker's life: jobs from the pipe, results into it."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard interrupts the process that gives out the work
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    try:
        work = make()
        problem = "" if _can_differentiate() else NO_GRADIENTS
    except UserError as error:
        problem = str(error)
    pipe.send_bytes(pickle.dumps(problem))
    while not problem:
        try:
            job = pickle.loads(pipe.recv_bytes())  # from the process that started this one
        except EOFError:
            return
        pipe.send_bytes(_answer(work, job))


def _answer(work: Work, job: Job) -> bytes:
    try:
        return pickle.dumps(work(job))
    except (UserError, OutOfTime) as error:
        return pickle.dumps(error)
    except Exception:
        return pickle.dumps(RuntimeError(f"in a worker:\n{traceback.format_exc()}"))


def _can_differentiate() -> bool:
    x = torch.ones(1, requires_grad=True)
    try:
        (2 * x).sum().backward()
    except RuntimeError:
        return False
    return True
