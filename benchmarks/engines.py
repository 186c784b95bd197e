"""Engines: overhead per job, efficiency at 1 and 2 workers here, random kills, and a simulation of 8 to 1,000 workers.

    python benchmarks/engines.py                          # all parts; ray and its kills where ray is installed
    python benchmarks/engines.py --part kills_of_ranks    # or of workers, drivers, ray_drivers, ray_node (engine_kills.py)
    python benchmarks/engines.py --quick                  # a few images and kills

Idle: seconds that the processes were paid for and no job took. An evaluation of a small network in blocks of one image has so many
jobs that nothing waits: there idle seconds over the number of jobs are the overhead per job. Elsewhere processes also wait, where a
phase has fewer jobs left than there are processes, or a pilot comes first: `many` is an evaluation of 200 images by a few methods,
`full` one of 64 images with every certificate, of which one job takes most of the time. Efficiency: wall seconds of one process,
over processes times wall seconds. The simulation enlarges the measured job times of `full` to 50,000 images. Every table is
compared with that of one process.
"""

import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from common import ROOT, arguments, finish, machine, sources_digest
from engine_kills import KINDS, kills, together
from engine_simulation import Fleet, efficiency, enlarged, limit
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN, SuperDeepFool
from robustbench_rkhs.evaluation.engine_choice import AnyEngine, Here, Ranks, Ray
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.paths import PACKAGE
from robustbench_rkhs.training.checkpoint import load

SOURCES = sorted(str(path.relative_to(Path(PACKAGE).parent)) for path in (Path(PACKAGE) / "evaluation").rglob("*.py"))
KILLS = {f"kills_of_{kind}": kind for kind in KINDS}
PARTS = ("overhead", "efficiency", *KILLS, "simulation")
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
MANY = {**FULL, "attacks": (DDN(steps=50), SuperDeepFool()), "certificates": ("margin", "crown"), "diagnostics": False}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The logs of jobs."""
    return [json.loads(line) for path in folder.glob("*/jobs/*.jsonl") for line in path.read_text().splitlines()]


def measured(scene: tuple[nn.Module, Any], settings: dict[str, Any], engine: AnyEngine, workers: int | None) -> dict[str, Any]:
    """Wall seconds, the job seconds of each phase, and the digest of the table."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        if isinstance(engine, Ranks):
            digest = together(2, scene, settings, Path(folder))
        else:
            digest = verdicts.digest(evaluate(*scene, folder=folder, engine=engine, workers=workers, **settings).table)
        took, jobs = time.monotonic() - started, lines(Path(folder))
        return {"wall": took, "phases": by_phase(jobs), "digest": digest}


def by_phase(jobs: list[dict[str, Any]]) -> list[list[float]]:
    """The seconds of the jobs of each method, in the order of methods."""
    found: dict[tuple[str, str], list[float]] = {}
    for one in jobs:
        found.setdefault((one["phase"], one["method"]), []).append(one["seconds"])
    return list(found.values())


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
        if not ray.is_initialized():
            ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="error")
    except ImportError:
        pass
    return known


def compared(scene: Any, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each engine on the same evaluation: efficiency against one process, idle seconds, and whether the table is the same."""
    found: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for name, (engine, workers, processes) in engines().items():
        one = measured(scene, settings, engine, workers)
        whole = whole or one
        jobs = [seconds for phase in one["phases"] for seconds in phase]
        idle = max(processes * one["wall"] - sum(jobs), 0.0)
        found[name] = {
            "wall_seconds": round(one["wall"], 2),
            "jobs": len(jobs),
            "job_seconds": round(sum(jobs), 2),
            "longest_job": round(max(jobs), 2),
            "idle_seconds": round(idle, 2),
            "idle_per_job": round(idle / len(jobs), 4),
            "efficiency": round(whole["wall"] / (processes * one["wall"]), 3),
            "same_table": one["digest"] == whole["digest"],
        }
    return found


def simulated(images: int, overhead: float, serial: float) -> dict[str, Any]:
    """The measured jobs of an evaluation, enlarged to 50,000 images, on 8 to 1,000 workers."""
    with tempfile.TemporaryDirectory() as folder:
        evaluate(*real(images), folder=folder, workers=1, **FULL)
        phases = enlarged(by_phase(lines(Path(folder))), IMAGES // images)
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

    def keep(part: str, figures: dict[str, Any]) -> None:
        """Each part says when, where and of which code it was measured: others may be of another day."""
        of = {"date": date.today().isoformat(), "machine": machine("cpu"), "sources_sha256": sources_digest(SOURCES)}
        found[part] = figures | {"of": of}
        finish("engines", found, given, SOURCES, last=False)

    if {"overhead", "simulation"} & set(wanted):
        keep("overhead", compared(small(), CHEAP))
    if "efficiency" in wanted:
        few, every = (real(16), {**FULL, "effort": "quick"}) if given.quick else (real(64), FULL)
        keep("efficiency", {"many": compared(real(16 if given.quick else 200), MANY), "full": compared(few, every)})
    for part in (part for part in KILLS if part in wanted):
        kind, scene = KILLS[part], (real(24), {**FULL, "effort": "quick"})
        keep(part, kills(*scene, kind, min(2, KINDS[kind]) if given.quick else KINDS[kind]))
    if "simulation" in wanted:
        here = found["overhead"]["here_2"]["idle_per_job"]
        keep("simulation", simulated(16 if given.quick else 64, here, here / 2))
    finish("engines", found, given, SOURCES)


if __name__ == "__main__":
    main()
