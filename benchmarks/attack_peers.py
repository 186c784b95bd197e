"""pyautoattack as its users run it, passes counted from outside; what it did on the curves is kept, one eps at a time.

python benchmarks/attack_peers.py adv          # ten epsilons on 300 images: a quarter of an hour on one quiet core
"""

import json
import sys
import time
from typing import Any

import torch
from attack_networks import images, network
from common import ROOT, machine
from torch import Tensor, nn

from robustbench_rkhs.attacks.library_model import Counted

GRID = tuple(round(0.1 * step, 1) for step in range(1, 11))
KEPT = ROOT / "reports" / "benchmarks" / "attack_peers"


def autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str = "L2") -> dict[str, Any]:
    """One run of the standard version: who stands, passes by image and direction, CPU seconds of this process."""
    from pyautoattack import AutoAttack

    counted = Counted(model, x.shape[1:], x.dtype)
    started = time.process_time()
    library = AutoAttack(counted, norm=norm, eps=eps, seed=0, version="standard")
    found, _ = library.run_standard_evaluation(x, y, batch_size=256)
    seconds = time.process_time() - started
    with torch.no_grad():
        stands = model(found).argmax(1) == y
    return {
        "eps": eps,
        "stands": "".join(str(int(one)) for one in stands),
        "forwards": counted.forwards,
        "backwards": counted.backwards,
        "seconds": round(seconds, 2),
    }


def kept(name: str, digest: str, count: int, **known: Any) -> list[dict[str, Any]]:
    """The runs on disk on this network and these images; none where anything `known` beside them is another now."""
    path = KEPT / f"{name}.json"
    held = json.loads(path.read_text()) if path.is_file() else {}
    wanted = {"data": digest, "images": count} | known
    return list(held.get("runs", [])) if {key: held.get(key) for key in wanted} == wanted else []


def keep(name: str, digest: str, count: int, runs: list[dict[str, Any]], **known: Any) -> None:
    """Write them where `kept` looks."""
    record = {"network": name, "data": digest, "images": count, "seed": 0, "machine": machine("cpu"), **known, "runs": runs}
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def main(name: str, count: int = 300) -> None:
    torch.set_num_threads(1)
    model, test = network(name), images(count)
    runs = kept(name, test.digest, count)
    for eps in GRID[::-1]:
        if eps not in [run["eps"] for run in runs]:
            runs.append(autoattack(model, test.x, test.y, eps))
            keep(name, test.digest, count, runs)
            print(name, eps, runs[-1]["stands"].count("1"), runs[-1]["seconds"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
