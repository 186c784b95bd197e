"""A quarter of an hour of a GPU: tests, throughput, and two models, in stages that resume, each with a clock of its own.

$ python benchmarks/gpu.py --out reports/gpu --seconds 800        all stages, on a GPU
$ python benchmarks/gpu.py --quick                                the same at toy size on a CPU, in about two minutes

Each stage runs in a process of its own and shares what is left of the time with those after it; one that fails or hangs
stops none of them. Every stage adds one JSON line to OUT/results.jsonl, and a stage whose line says `done` is not run again.
Data: CIFAR-10 in the data root (RKHS_DATA), for the stages that train on it.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_stages

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"tests": 60.0, "throughput": 70.0, "pilot": 85.0, "robust": 230.0, "certified": 230.0, "evaluation": 70.0}
"""What each does is in gpu_stages.py; seconds it is meant to have, from which its share of the time follows."""
QUICK = {"tests": 60.0, "throughput": 30.0, "pilot": 10.0, "robust": 15.0, "certified": 15.0, "evaluation": 20.0}
"""The same with --quick, on two idle cores."""
GRACE = 10.0
"""Seconds past its own that a stage may use before it is stopped."""
PIECE = 15 * 2**20
"""Bytes of one piece of the archive."""
KEPT = ("config.json", "recipe.yaml", "README.md", "metrics.jsonl", "model.safetensors")
"""Files of a checkpoint that are packed."""
PACKED = (".jsonl", ".log", ".json", ".parquet")
"""Other files that are packed."""


def finished(out: Path) -> set[str]:
    """The stages that are done, by the lines of earlier runs."""
    path = out / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {line["stage"] for line in lines if line["state"] == "done"}


def shared(seconds: float, names: Sequence[str], meant: dict[str, float]) -> float:
    """What the first of these stages may use of the seconds that are left for all of them."""
    return seconds * meant[names[0]] / sum(meant[name] for name in names)


def stage(name: str, seconds: float, out: Path, device: str, quick: bool) -> dict[str, Any]:
    """Run one stage in a process group of its own: what it found, how it ended. It is stopped when its time is up.

    The process is forked, so that nothing is imported again; this one never touches the GPU.
    """
    started = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=inside, args=(name, seconds, out, device, quick))
    process.start()
    process.join(seconds + GRACE)
    state = "done" if process.exitcode == 0 else "failed"
    if process.exitcode is None:
        state = "stopped"
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    found: dict[str, Any] = {}
    for line in (out / f"{name}.jsonl").read_text().splitlines():
        found |= json.loads(line) if line.startswith("{") and line.endswith("}") else {}
    if state != "done":
        found["log"] = (out / f"{name}.log").read_text()[-1500:]
    return {"stage": name, "state": state, "seconds": round(time.monotonic() - started, 1), "given": round(seconds, 1)} | found


def inside(name: str, seconds: float, out: Path, device: str, quick: bool) -> None:
    """In the child: findings go to NAME.jsonl, everything else to NAME.log."""
    os.setsid()
    os.dup2(os.open(out / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    findings = out / f"{name}.jsonl"
    findings.write_text("")
    try:
        given = gpu_stages.Stage(out, findings, seconds, device, quick)
    except RuntimeError:  # a driver that does not survive a fork: once more, in an interpreter of its own
        again = f"import gpu_stages as g, pathlib as p; g.RUNS[{name!r}](g.Stage(p.Path({str(out)!r}), p.Path({str(findings)!r})"
        again += f", {seconds}, {device!r}, {quick}))"
        os.chdir(ROOT / "benchmarks")
        os.execv(sys.executable, [sys.executable, "-c", again])
    gpu_stages.RUNS[name](given)


def pack(out: Path, folder: Path) -> None:
    """Results, logs and checkpoints as one archive in pieces: `cat gpu.tar.* | tar x` puts them together again."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for path in sorted(out.rglob("*")):
                wanted = path.name in KEPT if "checkpoints" in path.parts else path.suffix in PACKED
                if path.is_file() and wanted:
                    archive.add(path, str(path.relative_to(out)))
        whole.seek(0)
        for old in folder.glob("gpu.tar.*"):
            old.unlink()
        for number in range(100):
            if not (piece := whole.read(PIECE)):
                break
            (folder / f"gpu.tar.{number:02}").write_bytes(piece)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="folder of results; reports/gpu, or reports/gpu-quick")
    parser.add_argument("--seconds", type=float, default=None, help="for all stages together; 670, or 150 with --quick")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, in this order")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--device", default="auto", help="auto: cuda where there is one, else cpu")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--pack", type=Path, default=None, help="folder that gets the archive, renewed after every stage")
    given = parser.parse_args()
    names = given.stages.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        parser.error(f"unknown stage {unknown[0]!r}; known: {', '.join(STAGES)}")
    out = given.out or ROOT / "reports" / ("gpu-quick" if given.quick else "gpu")
    if given.fresh or (given.quick and given.out is None):
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    meant = QUICK if given.quick else STAGES
    until = time.monotonic() + (given.seconds or sum(meant.values()))
    names = [name for name in names if name not in finished(out)]
    failed = False
    for position, name in enumerate(names):
        seconds = shared(max(until - time.monotonic() - GRACE / 2, 1.0), names[position:], meant)
        record = stage(name, seconds, out, given.device, given.quick)
        failed |= record["state"] != "done"
        line = json.dumps(record)
        with (out / "results.jsonl").open("a") as results:
            results.write(line + "\n")
        print(line, flush=True)
        if given.pack:
            pack(out, given.pack)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
