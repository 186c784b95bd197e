"""The worker processes of this machine: started, replaced where they are killed, and ended with this process."""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from robustbench_rkhs.evaluation.engines.worker import Work, serve
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import WorkerKilled, keyboard_held

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


class Pool:
    """A process for each of `makes`, which makes there what computes jobs; each is known by the pipe to it."""

    def __init__(self, makes: Sequence[Callable[[], Work]], method: str) -> None:
        """Raises UserError where a worker cannot work, WorkerKilled where one ends as it starts."""
        self._context: Any = multiprocessing.get_context(method)
        self._workers: dict[Connection, Worker] = {}
        self._idle: list[Connection] = []
        for make in makes:
            self._start(make)
        for pipe in list(self._idle):
            self._check(pipe)

    def sent(self, message: bytes) -> Connection:
        """Send to an idle worker, which is idle no more; the pipe to it."""
        pipe = self._idle.pop()
        try:
            pipe.send_bytes(message)
        except OSError:  # killed while it had nothing to do
            self.replace(pipe)
            pipe = self._idle.pop()
            pipe.send_bytes(message)
        return pipe

    def rest(self, pipe: Connection) -> None:
        """A worker has answered, and is idle."""
        self._idle.append(pipe)

    def pid(self, pipe: Connection) -> int:
        """The process at the other end of a pipe."""
        return int(self._workers[pipe].process.pid)

    def ending(self, pipe: Connection) -> str:
        """How the worker ended, in words."""
        return self._workers[pipe].ending()

    def replace(self, pipe: Connection) -> None:
        """Start a worker, idle as yet, in the place of a dead one. Raises as at the start."""
        dead = self._workers[pipe]
        self._forget(pipe)
        self._check(self._start(dead.make))

    def stop(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.process.terminate()
        for pipe, worker in self._workers.items():
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
            pipe.close()
        self._workers, self._idle = {}, []

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

    def _forget(self, pipe: Connection) -> None:
        """Close the pipe of a dead worker."""
        del self._workers[pipe]
        pipe.close()
        if pipe in self._idle:
            self._idle.remove(pipe)
