"""The engine of a Ray cluster: jobs are tasks, which any node computes and which are retried where a node is lost."""

import hashlib
import importlib
import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

from robustbench_rkhs.evaluation import engine_choice
from robustbench_rkhs.evaluation.engines.base import Outcome, Place
from robustbench_rkhs.evaluation.engines.here import InProcess
from robustbench_rkhs.evaluation.engines.worker import Work
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.loaders import RunnerMaker
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.events import Message, emit
from robustbench_rkhs.runtime.extras import require
from robustbench_rkhs.runtime.heartbeat import EVERY, Meter, beat
from robustbench_rkhs.verdicts import Part

Answer = tuple[Part | BaseException, Place, float]
"""What a task returns: the result, where it was computed, and how long that took."""


class Cluster:
    """A cluster that was joined, or begun for this process alone."""

    def __init__(self, choice: engine_choice.Ray) -> None:
        """Raises UserError where there is none, or no room in it."""
        require("ray", "ray", "--engine ray")
        self.ray: Any = importlib.import_module("ray")
        self.choice, self._began = choice, not self.ray.is_initialized()
        if self._began:
            _connect(self.ray, choice.address or os.environ.get("RAY_ADDRESS"))
        room = self.ray.cluster_resources()
        self.width = int(room.get("CPU", 0) / choice.cpus)
        """Tasks that run at once."""
        if choice.gpus > 0:
            self.width = min(self.width, int(room.get("GPU", 0) / choice.gpus))
        if self.width < 1:
            found = ", ".join(f"{room.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
            self.leave()
            raise UserError(f"--engine ray: a job takes {choice.cpus:g} CPU and {choice.gpus:g} GPU, found a cluster of {found}")

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a task, which is run again where its worker or node is lost."""
        wanted = {"num_cpus": self.choice.cpus, "num_gpus": self.choice.gpus, "scheduling_strategy": "SPREAD"}
        started: Callable[..., Any] = self.ray.remote(max_retries=self.choice.retries, retry_exceptions=False, **wanted)(
            function
        ).remote
        return started

    def wait(self, tasks: Sequence[Any]) -> None:
        """Until all have ended, or were lost more often than they are retried. Raises the UserError of one."""
        for task in tasks:
            try:
                self.ray.get(task)
            except self.ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except self.ray.exceptions.RayError as error:
                emit(Message(text=f"a task of the cluster was lost: {_first(error)}"))

    def leave(self) -> None:
        """Shut down what was begun here."""
        if self._began:
            self.ray.shutdown()


class RayTasks:
    """Computes each job as a task of Ray, on whatever node has room."""

    def __init__(self, make: RunnerMaker, work: Work, choice: engine_choice.Ray) -> None:
        """`work` computes in this process what cannot be sent. Raises UserError where there is no cluster, or no room in it."""
        self._cluster, self._here = Cluster(choice), InProcess(work)
        self._ray, self.width = self._cluster.ray, self._cluster.width
        stored = pickle.dumps(make)
        self._make, self._digest = [self._ray.put(stored)], hashlib.sha256(stored).hexdigest()
        self._task = self._cluster.task(_computed)
        self._retries = choice.retries
        self._running: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        try:
            message = pickle.dumps(job)
        except Exception:  # whatever somebody else's object raises
            self._here.submit(job)
            return
        self._running[self._task(self._make, self._digest, message)] = job

    def result(self) -> Outcome:
        if self._here.waiting:
            return self._here.result()
        while True:
            done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=EVERY)
            beat()
            if done:
                job = self._running.pop(done[0])
                try:
                    found, place, seconds = self._ray.get(done[0])
                except self._ray.exceptions.RayError as error:
                    line = f"{job.label} on {len(job.index)} images was given up after {self._retries} retries: {_first(error)}"
                    return Outcome(job, WorkerKilled(line))
                return Outcome(job, found, Place(*place), seconds)

    def under_way(self) -> list[tuple[Job, Meter]]:
        return [*((job, Meter()) for job in self._running.values()), *self._here.under_way()]

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running = {}
        self._cluster.leave()


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster, or begin one of this machine. Raises UserError."""
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None, logging_level="error")
    except Exception as error:  # a cluster that does not start in time raises nothing more special
        raise UserError(f"--engine ray: no cluster at {address or 'this machine'}: {_first(error)}") from None


def _first(error: BaseException) -> str:
    """The first line of what an exception says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_runners: dict[str, Work] = {}
"""What computes jobs in this process, by the digest of what it was made from: made once."""


def _runner(stored: list[Any], digest: str) -> Work:
    if digest not in _runners:
        import torch

        ray: Any = importlib.import_module("ray")
        torch.set_num_threads(1)
        _runners.clear()
        _runners[digest] = pickle.loads(ray.get(stored[0]))()  # from the process that gives out the work
    return _runners[digest]


def _computed(stored: list[Any], digest: str, message: bytes) -> Answer:
    """A task: the result of a job, computed where Ray runs it. `stored`: a reference to what makes the runner, in a list, so that
    Ray fetches it only where it is asked for."""
    started = time.monotonic()
    found: Part | BaseException
    try:
        found = _runner(stored, digest)(pickle.loads(message))
    except (Exception, OutOfTime) as error:
        found = error if isinstance(error, UserError | OutOfTime) else RuntimeError(f"in a task: {type(error).__name__}: {error}")
    return found, Place.here(), time.monotonic() - started
