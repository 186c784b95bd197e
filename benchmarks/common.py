"""What every benchmark ends with: one JSON line, and for a full run the file reports/benchmarks/NAME.json."""

import argparse
import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def arguments(description: str, parts: tuple[str, ...] = (), threads: int = 2) -> argparse.Namespace:
    """--quick (a sample of the same work, within a minute), --device, --threads; --part where there are such."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a sample of the same work, within a minute on 2 cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=threads)
    if parts:
        parser.add_argument("--part", choices=("all", *parts), default="all", help="only this; the file keeps the others'")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def wait(device: str) -> None:
    """Let the device finish, so that a clock read now means something."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def machines(records: Iterable[Mapping[str, Any]]) -> str:
    """Every machine that made one of these records."""
    return " and ".join(dict.fromkeys(str(record["machine"]) for record in records))


def machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), model)
    count = torch.get_num_threads()
    return f"{model}, {count} thread{'s' if count > 1 else ''}"


def sources_digest(sources: list[str]) -> str:
    """sha256 of the files, in the order of their names."""
    sha = hashlib.sha256()
    for source in sorted(sources):
        sha.update((ROOT / source).read_bytes())
    return sha.hexdigest()


def stamp(sources: list[str], device: str) -> dict[str, Any]:
    """What some figures were measured on, with and when."""
    return {
        "machine": machine(device),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "sources": {"files": sorted(sources), "sha256": sources_digest(sources)},
    }


def finish(name: str, figures: dict[str, Any], given: argparse.Namespace, sources: list[str], *, last: bool = True) -> None:
    """Print the figures as the last line; write the committed file after a full run. Not `last`: only the file."""
    record = {
        "benchmark": name,
        **figures,
        "quick": given.quick,
        "command": shlex.join(["python", *sys.argv]),
        **stamp(sources, given.device),
    }
    if not given.quick:
        path = ROOT / "reports" / "benchmarks" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")
    if last:
        print(json.dumps(record))
