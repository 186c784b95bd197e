"""The workers of a sweep by engine: this process, one for each device, the ranks of torchrun or srun, or tasks of a Ray cluster."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustbench_rkhs.evaluation.engine_choice import AnyEngine, Here, Ranks, Ray
from robustbench_rkhs.evaluation.engines.cluster import Cluster
from robustbench_rkhs.evaluation.engines.ranks import VARIABLES, Rank
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import as_worker
from robustbench_rkhs.runtime.events import OnEvent
from robustbench_rkhs.sweep.plan import Plan
from robustbench_rkhs.sweep.worker import work

NAP = 1.0
"""Seconds between two looks for a trial that a lost worker left, while the others still train."""


@dataclass(frozen=True)
class Worker:
    """A worker of one sweep: a value that another process can be given."""

    plan: Plan
    name: str
    folder: Path
    reports: Path
    device: str
    command: str

    def __call__(self, on_event: OnEvent | None = None) -> dict[str, Any]:
        """Train until no setting is left; the report."""
        named, where = (self.name, self.folder, self.reports), self.device
        return work(self.plan, *named, device=where, command=self.command, on_event=on_event)

    def to_the_end(self, on_event: OnEvent | None = None) -> dict[str, Any]:
        """The same, and the trials of workers that are lost meanwhile; returns once every trial has ended."""
        while not (found := self(on_event))["finished"]:
            time.sleep(NAP)
        return found


def swept(choice: AnyEngine, worker: Worker, on_event: OnEvent | None = None) -> dict[str, Any]:
    """Run the sweep on an engine; its report. Workers share FOLDER and nothing else: a lost one's trial is taken over.

    Raises UserError, as `work`.
    """
    if isinstance(choice, Here) and not choice.devices:
        return worker(on_event)
    if isinstance(choice, Here):
        return _on_devices(choice.devices, worker, on_event)
    if isinstance(choice, Ranks):
        first = Rank.mine().number == 0
        with _alone():
            return worker.to_the_end(on_event) if first else worker(on_event)
    if isinstance(choice, Ray):
        return _on_cluster(choice, worker, on_event)
    raise UserError("a job array is submitted by a command: rkhs-sweep --engine submitit ...")


def _on_devices(devices: tuple[str, ...], worker: Worker, on_event: OnEvent | None) -> dict[str, Any]:
    """This process is the worker of the first device; the others end with it."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_serve, args=(replace(worker, device=one), os.getpid()), daemon=True) for one in devices[1:]]
    for process in others:
        process.start()
    try:
        return replace(worker, device=devices[0]).to_the_end(on_event)
    finally:
        for process in others:
            process.terminate()
            process.join(5)


def _serve(worker: Worker, parent: int) -> None:
    as_worker(parent)
    worker()


def _on_cluster(choice: Ray, worker: Worker, on_event: OnEvent | None) -> dict[str, Any]:
    """One task for each place of the cluster, at most one per trial; this process trains only what they lost."""
    cluster, here = Cluster(choice), Path.cwd()
    try:
        cluster.wait([cluster.task(_there)(worker, here) for _ in range(min(cluster.width, worker.plan.trials))])
        return worker.to_the_end(on_event)
    finally:
        cluster.leave()


def _there(worker: Worker, folder: Path) -> None:
    """On a node: from the same folder, which all nodes share, so that names of recipes and data mean the same."""
    if not folder.is_dir():
        raise UserError(f"the nodes of a sweep share its folder, found no {folder} on this one")
    os.chdir(folder)
    worker()


@contextmanager
def _alone() -> Iterator[None]:
    """Context manager in which no training takes this process for a part of one."""
    names = [*(name for pair in VARIABLES for name in pair), "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)
