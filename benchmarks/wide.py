"""The Lipschitz certificates on wide networks: CPU seconds and memory up to 4,096 features a layer.

    python benchmarks/wide.py

Random ReLU networks (PyTorch's initialisation, seed 0) and two random images. `margin`, `liplt` and `eclipse` each in a process of
its own, on one thread, so that the peak of the memory is theirs. `times_margin`: the mean ratio of the radii to those of `margin`.
Takes about five CPU minutes. Writes reports/benchmarks/wide.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import torch
from common import ROOT, stamp
from torch import nn

from robustbench_rkhs.certificates import EclipseCertificate, LipLTCertificate, MarginCertificate

NETWORKS = ((784, 1024, 1024, 10), (784, 2048, 2048, 10), (784, 4096, 4096, 10), (3072, 4096, 4096, 4096, 10))
CERTIFICATES = {"margin": MarginCertificate(), "liplt": LipLTCertificate(), "eclipse": EclipseCertificate()}
SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("certificates", "bounds", "lipschitz")
    for path in (ROOT / "robustbench_rkhs" / folder).glob("*.py")
)


def measure(widths: tuple[int, ...], name: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model, x = nn.Sequential(*layers[:-1]).eval(), torch.rand(2, widths[0])
    label, before = model(x).argmax(1), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    radius = CERTIFICATES[name](model, x, label, torch.arange(2)).radius
    seconds = round(time.process_time() - begun, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "radius": radius.tolist(),
        "seconds": seconds,
        "peak_gib": round(peak / 2**20, 2),
        "before_gib": round(before / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(tuple(map(int, given.one[0].split("-"))), given.one[1])))
        return
    rows: dict[str, dict[str, Any]] = {}
    for widths in NETWORKS:
        key = "-".join(map(str, widths))
        rows[key] = {}
        for name in CERTIFICATES:
            made = subprocess.run([sys.executable, __file__, "--one", key, name], capture_output=True, text=True, check=True)
            rows[key][name] = json.loads(made.stdout)
            ratios = torch.tensor(rows[key][name].pop("radius")) / torch.tensor(rows[key].setdefault("_radius", [1.0, 1.0]))
            if name == "margin":
                rows[key]["_radius"] = ratios.tolist()
            else:
                rows[key][name]["times_margin"] = round(ratios.mean().item(), 3)
        del rows[key]["_radius"]
        print(key, json.dumps(rows[key]), flush=True)
    torch.set_num_threads(1)
    record = {"benchmark": "wide", "networks": rows, "command": "python " + " ".join(sys.argv), **stamp(SOURCES, "cpu")}
    (ROOT / "reports" / "benchmarks" / "wide.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
