"""sdp_crown where it refuses by itself: one image of robust_vgg (CIFAR-10, 10^5 values at kinks), seconds and memory.

    python benchmarks/forced.py

The first image of 20 (seed 0) that is right. LipLT's radius first, then `sdp_crown` with `neurons` raised, at shares of that radius
above one, and at 0.001. Intervals are tightened at layers with at most 64 uncertain values (with the certificate's 512 a single
eps takes minutes), and there is no branching. Seconds are of the process; memory is the peak of the process so far. Takes two
CPU minutes. Writes reports/benchmarks/forced.json.
"""

import argparse
import json
import resource
import sys
import time

import torch
from common import ROOT, stamp

from robustbench_rkhs.certificates import LipLTCertificate, SdpCrownCertificate
from robustbench_rkhs.certificates.base import Certificate
from robustbench_rkhs.training.checkpoint import load

SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("certificates", "relaxations", "bounds", "lipschitz")
    for path in (ROOT / "robustbench_rkhs" / folder).glob("*.py")
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="robust_vgg")
    parser.add_argument("--shares", type=float, nargs="*", default=[1.01, 1.02, 1.03, 1.1])
    parser.add_argument("--eps", type=float, nargs="*", default=[0.001])
    parser.add_argument("--intervals", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(ROOT / "checkpoints" / given.model)
    model, test = loaded.model.eval(), loaded.recipe.data.test().sample(20, 0)
    at = int((model(test.x).argmax(1) == test.y).nonzero()[0])
    x, y = test.x[at : at + 1], test.y[at : at + 1]

    def run(method: Certificate, epsilons: list[float]) -> dict[str, float]:
        begun = time.process_time()
        radius = float(method(model, x, y, torch.tensor([at]), epsilons).radius)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {"radius": radius, "seconds": round(time.process_time() - begun, 1), "peak_gib": round(peak, 2)}

    plain = run(LipLTCertificate(), [])
    forced = SdpCrownCertificate(search=False, neurons=10**7, intervals=given.intervals, domains=0, box="unit")
    rows = [{"eps": eps, **run(forced, [eps])} for eps in (*(share * plain["radius"] for share in given.shares), *given.eps)]
    record = {
        "benchmark": "forced",
        "model": given.model,
        "image": int(test.index[at]),
        "intervals": given.intervals,
        "liplt": plain,
        "sdp_crown": rows,
    }
    record |= {"command": "python " + " ".join(sys.argv), **stamp(SOURCES, "cpu")}
    (ROOT / "reports" / "benchmarks" / "forced.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({key: record[key] for key in ("liplt", "sdp_crown", "machine", "date")}))


if __name__ == "__main__":
    main()
