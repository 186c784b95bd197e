"""Engines: overhead per job, efficiency at 1 and 2 workers here, random kills, and a simulation of 8 to 1,000 workers.

    python benchmarks/engines.py                    # all parts; ray and its kills where ray is installed
    python benchmarks/engines.py --part kills       # 50 random kills of ranks; a node of a three-node Ray cluster killed midway
    python benchmarks/engines.py --quick            # a few images and kills

Overhead per job: an evaluation of a small network in blocks of one image; seconds between the start and the end of its jobs that
no job took, over the number of jobs. Efficiency: wall seconds of one process, over workers times wall seconds. The simulation
enlarges the measured job times of a digits evaluation to 50,000 images. Every table is compared with that of one process.
"""

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, arguments, finish
from engine_simulation import Fleet, efficiency, enlarged, limit
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN
from robustbench_rkhs.evaluation.engine_choice import AnyEngine, Here, Ranks, Ray
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.paths import PACKAGE
from robustbench_rkhs.runtime.events import Progress
from robustbench_rkhs.training.checkpoint import load

SOURCES = sorted(str(path.relative_to(Path(PACKAGE).parent)) for path in (Path(PACKAGE) / "evaluation").rglob("*.py"))
PARTS = ("overhead", "efficiency", "kills", "simulation")
KILLS = 50
IMAGES = 50_000


def small() -> tuple[nn.Module, Any]:
    """A network whose jobs take milliseconds, and 200 images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(200, 1, 4, 4)
    return model, (x, model(x).argmax(1))


def real(images: int) -> tuple[nn.Module, Any]:
    """A shipped network of digits."""
    loaded = load(Path(PACKAGE).parent / "checkpoints" / "digits_conv")
    return loaded.model.eval(), loaded.recipe.data.test().sample(images, 0)


CHEAP = {"eps": (0.1,), "attacks": (DDN(steps=2),), "certificates": (), "diagnostics": False, "rechecked": 0, "block": 1}
FULL = {"eps": (0.25,), "block": 8, "seed": 0}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The logs of jobs."""
    return [json.loads(line) for path in folder.glob("*/jobs/*.jsonl") for line in path.read_text().splitlines()]


def measured(scene: tuple[nn.Module, Any], settings: dict[str, Any], engine: AnyEngine, workers: int | None) -> dict[str, Any]:
    """Wall seconds, the seconds of all jobs, their number, and the digest of the table."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        if isinstance(engine, Ranks):
            digest = together(2, scene, settings, Path(folder))
        else:
            digest = verdicts.digest(evaluate(*scene, folder=folder, engine=engine, workers=workers, **settings).table)
        took, jobs = time.monotonic() - started, lines(Path(folder))
        return {"wall": took, "jobs": len(jobs), "job_seconds": sum(one["seconds"] for one in jobs), "digest": digest}


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


def engines() -> dict[str, tuple[AnyEngine, int | None, int]]:
    """Engine, workers and processes that compute, by name."""
    known: dict[str, tuple[AnyEngine, int | None, int]] = {
        "here_1": (Here(), 1, 1),
        "here_2": (Here(), 2, 2),
        "ranks_2": (Ranks(), None, 2),
    }
    try:
        import ray

        known["ray_2"] = (Ray(address=None), None, 2)
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="error")
    except ImportError:
        pass
    return known


def compared(scene: Any, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each engine on the same evaluation: efficiency against one process, overhead per job, and whether the table is the same."""
    found: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for name, (engine, workers, processes) in engines().items():
        one = measured(scene, settings, engine, workers)
        whole = whole or one
        found[name] = {
            "wall_seconds": round(one["wall"], 2),
            "jobs": one["jobs"],
            "overhead_per_job": round(max(one["wall"] * processes - one["job_seconds"], 0.0) / max(one["jobs"], 1), 4),
            "efficiency": round(whole["wall"] / (processes * one["wall"]), 3),
            "same_table": one["digest"] == whole["digest"],
        }
    return found


def kills(count: int) -> dict[str, Any]:
    """Ranks killed at random moments, two runs at a time, until as many were killed; then a run to the end."""
    scene, settings = real(24), {**FULL, "effort": "quick"}
    whole = verdicts.digest(evaluate(*scene, workers=1, **settings).table)
    chance, killed, wrong, doubled = random.Random(0), 0, 0, 0
    while killed < count:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for _ in range(chance.randint(1, 4)):
                processes, _ = begun(2, scene, settings, folder)
                time.sleep(chance.uniform(0.1, 4.0))
                for process in processes if chance.random() < 0.5 else processes[:1]:
                    os.kill(process.pid, signal.SIGKILL)
                    killed += 1
                for process in processes:
                    process.join()
            wrong += together(2, scene, settings, folder) != whole
            rows = verdicts.read(next(folder.glob("*/l2-*.parquet"))).table
            doubled += int(rows.duplicated(["index", "method", "eps"]).sum())
    return {"ranks_killed": killed, "tables_that_differ": wrong, "rows_doubled": doubled} | cluster_killed(scene, settings, whole)


def cluster_killed(scene: Any, settings: dict[str, Any], whole: str) -> dict[str, Any]:
    """A cluster of three nodes, one of which is killed midway."""
    try:
        import ray
        from ray.cluster_utils import Cluster
    except ImportError:
        return {"ray_node_killed": "ray is not installed"}
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


def simulated(images: int, overhead: float, serial: float) -> dict[str, Any]:
    """The measured jobs of an evaluation, enlarged to 50,000 images, on 8 to 1,000 workers."""
    with tempfile.TemporaryDirectory() as folder:
        evaluate(*real(images), folder=folder, workers=1, **FULL)
        jobs = lines(Path(folder))
    order = list(dict.fromkeys((one["phase"], one["method"]) for one in jobs))
    phases = enlarged(
        [[one["seconds"] for one in jobs if (one["phase"], one["method"]) == kind] for kind in order], IMAGES // images
    )
    found: dict[str, Any] = {}
    for workers in (8, 32, 128, 512, 1000):
        plain, slow = Fleet(workers, overhead, serial), Fleet(workers, overhead, serial, slow=0.02)
        found[str(workers)] = {
            "efficiency": round(efficiency(phases, plain), 3),
            "with_stragglers": round(efficiency(phases, slow), 3),
            "limited_by": limit(phases, plain),
        }
    return found


def main() -> None:
    given = arguments(__doc__ or "", PARTS, threads=1)
    wanted = PARTS if given.part == "all" else (given.part,)
    kept = ROOT / "reports" / "benchmarks" / "engines.json"
    before = json.loads(kept.read_text()) if given.part != "all" and kept.is_file() else {}
    found: dict[str, Any] = {part: before[part] for part in PARTS if part in before}
    if {"overhead", "simulation"} & set(wanted):
        found["overhead"] = compared(small(), CHEAP)
    if "efficiency" in wanted:
        found["efficiency"] = compared(real(16 if given.quick else 64), {**FULL, "effort": "quick"} if given.quick else FULL)
    if "kills" in wanted:
        found["kills"] = kills(4 if given.quick else KILLS)
    if "simulation" in wanted:
        here = found["overhead"]["here_2"]["overhead_per_job"]
        found["simulation"] = simulated(16 if given.quick else 64, here, here / 2)
    finish("engines", found, given, SOURCES)


if __name__ == "__main__":
    main()
