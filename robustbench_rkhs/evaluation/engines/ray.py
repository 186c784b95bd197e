"""The engine of a Ray cluster: jobs are tasks, which any node computes and which are retried where a node is lost."""

import hashlib
import importlib
import pickle
import time
from typing import Any

from robustbench_rkhs.evaluation import engine_choice
from robustbench_rkhs.evaluation.engines.base import Outcome, Place
from robustbench_rkhs.evaluation.engines.cluster import Cluster, first_line
from robustbench_rkhs.evaluation.engines.here import InProcess
from robustbench_rkhs.evaluation.engines.worker import Work
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.loaders import RunnerMaker
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.heartbeat import EVERY, Meter, beat
from robustbench_rkhs.verdicts import Part

Answer = tuple[Part | BaseException, Place, float]
"""What a task returns: the result, where it was computed, and how long that took."""


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
        if (message := self._here.packed(job)) is not None:
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
                    line = f"{job.label} on {len(job.index)} images was given up after {self._retries} retries: {first_line(error)}"
                    return Outcome(job, WorkerKilled(line))
                return Outcome(job, found, Place(*place), seconds)

    def under_way(self) -> list[tuple[Job, Meter]]:
        return [*((job, Meter()) for job in self._running.values()), *self._here.under_way()]

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running = {}
        self._cluster.leave()


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
