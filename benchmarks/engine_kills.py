"""Random kills of an evaluation's processes: ranks, workers, the process that gives out the work, and a node of a Ray cluster.

After each the evaluation is run to its end. Counted are tables that differ from that of one process, rows that are there twice,
and processes that outlive the one that started them.
"""

import importlib.util
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from process_tree import below, still_there

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.engine_choice import AnyEngine, Here, Ranks, Ray
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.events import Progress

KINDS = {"ranks": 50, "workers": 10, "drivers": 10, "ray_drivers": 3, "ray_node": 1}
"""What is killed, and how often: a process that gives out the work on Ray costs two clusters and a minute."""
LONGEST, PATIENCE, RAY_PATIENCE = 4.0, 10.0, 120.0
"""Seconds until which a process is killed, and in which all must end whose parent was killed: two agents of Ray take a minute."""


def rank(number: int, world: int, scene: Any, settings: dict[str, Any], folder: Path, said: Any) -> None:
    """One of the processes of a run by ranks."""
    os.environ.update({"RKHS_RANK": str(number), "RKHS_RANKS": str(world)})
    torch.set_num_threads(1)
    said.put(verdicts.digest(evaluate(*scene, folder=folder, engine=Ranks(), **settings).table))


def begun(world: int, scene: Any, settings: dict[str, Any], folder: Path) -> tuple[list[Any], Any]:
    """So many ranks, running, and the queue of their digests."""
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    processes = [context.Process(target=rank, args=(one, world, scene, settings, folder, said)) for one in range(world)]
    for process in processes:
        process.start()
    return processes, said


def together(world: int, scene: Any, settings: dict[str, Any], folder: Path) -> str:
    """The digest of the table of so many ranks, which all have the same."""
    processes, said = begun(world, scene, settings, folder)
    digests = {said.get() for _ in processes}
    for process in processes:
        process.join()
    if len(digests) != 1:
        raise AssertionError(f"ranks have {len(digests)} different tables")
    return digests.pop()


def kills(scene: Any, settings: dict[str, Any], kind: str, count: int) -> dict[str, Any]:
    """So many kills of one of KINDS, and what they did harm to. Those of Ray: `{"ray": "is not installed"}` without it."""
    whole, chance = verdicts.digest(evaluate(*scene, workers=1, **settings).table), random.Random(0)
    if kind == "ranks":
        return ranks_killed(scene, settings, whole, count, chance)
    if kind == "workers":
        return workers_killed(scene, settings, whole, count, chance)
    if kind == "drivers":
        return drivers_killed(scene, settings, whole, count, Here(), chance)
    if importlib.util.find_spec("ray") is None:
        return {"ray": "is not installed"}
    return (
        drivers_killed(scene, settings, whole, count, Ray(), chance)
        if kind == "ray_drivers"
        else cluster_killed(scene, settings, whole)
    )


def harm(folder: Path, digest: str, whole: str) -> dict[str, int]:
    """Whether the table of a finished run is another one, and its rows that are there twice."""
    rows = verdicts.read(next(folder.glob("*/l2-*.parquet"))).table
    return {"tables_that_differ": int(digest != whole), "rows_doubled": int(rows.duplicated(["index", "method", "eps"]).sum())}


def ranks_killed(scene: Any, settings: dict[str, Any], whole: str, count: int, chance: random.Random) -> Counter[str]:
    """One or both of two ranks killed, one to four times; then a run to the end."""
    found = Counter(killed=0)
    while found["killed"] < count:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for _ in range(chance.randint(1, 4)):
                processes, _ = begun(2, scene, settings, folder)
                time.sleep(chance.uniform(0.1, LONGEST))
                for process in processes if chance.random() < 0.5 else processes[:1]:
                    os.kill(process.pid, signal.SIGKILL)
                    found["killed"] += 1
                for process in processes:
                    process.join()
            found.update(harm(folder, together(2, scene, settings, folder), whole))
    return found


def driver(scene: Any, settings: dict[str, Any], folder: Path, engine: AnyEngine, said: Any) -> None:
    """The process that gives out the work. Its digest is empty where a worker was killed as it started, which ends a run."""
    torch.set_num_threads(1)
    workers = 2 if isinstance(engine, Here) else None
    try:
        said.put(verdicts.digest(evaluate(*scene, folder=folder, engine=engine, workers=workers, **settings).table))
    except WorkerKilled:
        said.put("")


def driven(scene: Any, settings: dict[str, Any], folder: Path, engine: AnyEngine) -> tuple[Any, Any]:
    """That process, running, and the queue of its digest."""
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    process = context.Process(target=driver, args=(scene, settings, folder, engine, said))
    process.start()
    return process, said


def workers_killed(scene: Any, settings: dict[str, Any], whole: str, count: int, chance: random.Random) -> Counter[str]:
    """One of two workers killed in each run, which goes on to its end; where it was only starting, the run is begun again."""
    found = Counter(killed=0, killed_at_the_start=0)
    while found["killed"] < count:
        with tempfile.TemporaryDirectory() as place:
            process, said = driven(scene, settings, Path(place), Here())
            time.sleep(chance.uniform(0.1, LONGEST))
            if workers := below(process.pid):
                os.kill(chance.choice(workers), signal.SIGKILL)
                found["killed"] += 1
            digest = said.get(timeout=600)
            process.join()
            if not digest:
                found["killed_at_the_start"] += 1
                process, said = driven(scene, settings, Path(place), Here())
                digest = said.get(timeout=600)
                process.join()
            found.update(harm(Path(place), digest, whole))
    return found


def drivers_killed(
    scene: Any, settings: dict[str, Any], whole: str, count: int, engine: AnyEngine, chance: random.Random
) -> Counter[str]:
    """The process that gives out the work killed; all that it started must end; then a run to the end."""
    found = Counter(killed=0, processes_left=0)
    while found["killed"] < count:
        with tempfile.TemporaryDirectory() as place:
            process, _ = driven(scene, settings, Path(place), engine)
            time.sleep(chance.uniform(0.1, LONGEST if isinstance(engine, Here) else 4 * LONGEST))
            started = below(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            found["killed"] += 1
            found["processes_left"] += len(still_there(started, PATIENCE if isinstance(engine, Here) else RAY_PATIENCE))
            process, said = driven(scene, settings, Path(place), engine)
            found.update(harm(Path(place), said.get(timeout=600), whole))
            process.join()
    return found


def cluster_killed(scene: Any, settings: dict[str, Any], whole: str) -> dict[str, Any]:
    """A cluster of three nodes, one of which is killed midway."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    removed: list[float] = []

    def midway(event: Any) -> None:
        if isinstance(event, Progress) and event.phase == "attacks" and not removed:
            cluster.remove_node(nodes[0])
            removed.append(time.monotonic())

    try:
        with tempfile.TemporaryDirectory() as folder:
            done = evaluate(*scene, folder=folder, engine=Ray(), on_event=midway, **settings)
            return {"ray_node_killed": bool(removed), "ray_table_same": verdicts.digest(done.table) == whole}
    finally:
        ray.shutdown()
        cluster.shutdown()
