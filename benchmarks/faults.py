"""A campaign of faults: kills at random moments, flipped bits, mutated bundles. Every count of harm must be zero.

$ python benchmarks/faults.py --part kills --count 100 --seed 1
$ python benchmarks/faults.py --part flips --count 200
$ python benchmarks/faults.py --part bundles --count 1000
$ python benchmarks/faults.py --quick                       a few of each, as the suite does

Each run adds one JSON line to reports/faults/campaign.jsonl (what was tried of each kind, what went wrong, the first faults in
words) and prints it; --total sums the lines. Exit code 1 where a run found a fault. Most tries run in forks of
this process (fault_fork.py says what that leaves out), a share as typed commands, all inside a temporary folder; nothing outside
it is touched but the file of lines.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

from common import ROOT, machine
from fault_bundles import bundles
from fault_counts import FAULTS, Counts
from fault_flips import flips
from fault_fork import warm
from fault_kills import kills
from fault_stage import build

from robustbench_rkhs.evaluation.cache_key import sources_digest

LINES = ROOT / "reports" / "faults" / "campaign.jsonl"
PARTS: dict[str, Callable[..., Counts]] = {"kills": kills, "flips": flips, "bundles": bundles}
QUICK = {"kills": 8, "flips": 40, "bundles": 16}


def total(lines: list[str]) -> str:
    """The sum of all lines, as one."""
    tried: dict[str, Counter[str]] = {}
    found: Counter[str] = Counter()
    for line in map(json.loads, lines):
        tried.setdefault(line["part"], Counter()).update(line["tried"])
        found.update({kind: line[kind] for kind in FAULTS})
    sums = {part: {"all": sum(kinds.values()), **dict(sorted(kinds.items()))} for part, kinds in tried.items()}
    return json.dumps({"tried": sums, **{kind: found[kind] for kind in FAULTS}})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--count", type=int, help="tries of the part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1, help="so many runs, with the seeds that follow: a line each")
    parser.add_argument("--only", help="kills: this scenario alone; flips, bundles: this kind alone")
    parser.add_argument("--quick", action="store_true", help="a few of each part")
    parser.add_argument("--total", action="store_true", help="run nothing: sum the lines")
    parser.add_argument("--out", type=Path, default=LINES)
    given = parser.parse_args()
    if given.total:
        print(total(given.out.read_text().splitlines()))
        return 0
    warm()
    harm = False
    with tempfile.TemporaryDirectory(prefix="rkhs-faults-") as folder:
        stage, scratch = build(Path(folder) / "stage"), Path(folder) / "scratch"
        scratch.mkdir()
        parts = PARTS if given.part == "all" else (given.part,)
        for seed, part in product(range(given.seed, given.seed + given.runs), parts):
            started, before = time.monotonic(), sum(os.times()[:4])
            counts = PARTS[part](stage, scratch, given.count or QUICK[part], seed, given.only)
            took = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(sum(os.times()[:4]) - before, 1)}
            line = counts.line(part, seed, **took, device=machine("cpu"), sources=sources_digest()[:12])
            print(line, flush=True)
            harm |= not counts.clean
            if not given.quick:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                with given.out.open("a") as stream:
                    stream.write(line + "\n")
    return int(harm)


if __name__ == "__main__":
    raise SystemExit(main())
