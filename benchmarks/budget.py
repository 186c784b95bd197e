"""Does a budget of seconds hold? The command itself, timed from outside: a network of MNIST size, ResNet-18 on CIFAR, ViT-B/16.

    python benchmarks/budget.py                            # about 8 minutes
    python benchmarks/budget.py --part vit_b16 --seconds 10
    python benchmarks/budget.py --quick                    # the small network at 10 s

Weights are drawn at random, and an image's label is what the network says to it, so that every image is right to begin with. One
JSON line a case: seconds and CPU seconds of `rkhs-eval` from its first import to its last file, against 1.1 T + 10 s (times the
threads); the exit code; the shares broken, proved and untested. At 60 s the share broken is held against DDN's 20 steps on all
images, which nothing limits (`--without-ddn` leaves that out: a minute for the two smaller networks, many for ViT-B/16).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import ROOT, finish
from torch import nn

from robustbench_rkhs.attacks import DDN

COMMAND = "from robustbench_rkhs.cli.evaluate import main; main()"
LIMIT, ROOM = 1.1, 10.0
"""Wall time may be so many times the budget, and so many seconds more."""


class Case(NamedTuple):
    """A network, how many images it gets, and the eps they are attacked at."""

    shape: tuple[int, int, int]
    images: int
    eps: float


CASES = {
    "mnist_conv": Case((1, 28, 28), 500, 0.5),
    "resnet18_cifar": Case((3, 32, 32), 64, 1.7),
    "vit_b16": Case((3, 224, 224), 8, 1.5),
}


def mnist_conv() -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(64 * 49, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def resnet18_cifar() -> nn.Module:
    """As for CIFAR: a first kernel of 3, no first pool."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model.eval()


def vit_b16() -> nn.Module:
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    model = vit_b_16()
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts it at zero: logits that are all equal
    return model.eval()


def images(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images, smooth as pictures are, and what the network says to them."""
    case, model = CASES[name], globals()[name]()
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(case.images, case.shape[0], 7, 7, generator=generator)
    x = nn.functional.interpolate(coarse, case.shape[1:], mode="bilinear")
    with torch.no_grad():
        return x, torch.cat([model(part).argmax(1) for part in x.split(16)])


def timed(name: str, data: Path, eps: float, flags: list[str], threads: int, folder: Path) -> dict[str, Any]:
    """The command on this case: seconds, CPU seconds, exit code and what it found."""
    words = ["--model", f"{Path(__file__).resolve()}:{name}", "--data", str(data), "--eps", str(eps), *flags]
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    begun = time.monotonic()
    with open(folder / "stdout", "w+") as said, open(folder / "stderr", "w+") as told:
        child = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words, "--json", "--device", "cpu", "--out", str(folder / "out")],
            stdout=said,
            stderr=told,
            env=env,
        )
        _, status, used = os.wait4(child.pid, 0)
        wall = time.monotonic() - begun
        said.seek(0)
        text = said.read()
        told.seek(0)
        lines = told.read()
    found = {"wall": round(wall, 1), "cpu": round(used.ru_utime + used.ru_stime, 1), "code": os.waitstatus_to_exitcode(status)}
    done = json.loads(text or "{}").get("evaluations", [])
    if not done:
        return found | {"error": (text + lines)[-400:]}
    (row,) = done[0]["summary"]
    found |= {"complete": done[0]["about"]["complete"], "broken": 1 - row["not_broken"], "certified": row["certified"]}
    attacks = {one.pop("attack", ""): one for one in done[0]["attacks"]}
    return found | {"untested": row["count_untested"] / row["images"], "attacks": attacks}


def by_ddn(name: str, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share that 20 steps of DDN break within eps, however long they take."""
    found = DDN(steps=20)(globals()[name](), x, y, torch.arange(len(x)))
    away = (found.images - x).flatten(1).double().norm(dim=1)
    return float(((away > 0) & (away <= CASES[name].eps)).double().mean())


def measure(name: str, seconds: float, certify: bool, given: argparse.Namespace) -> dict[str, Any]:
    case, (x, y) = CASES[name], images(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "data.npz", x_test=x.numpy(), y_test=y.numpy())
        flags = ["--certify-seconds" if certify else "--budget", str(seconds)]
        flags += ["--effort", "quick", "--no-diagnostics", "--samples", "4"] if certify else []
        found = timed(name, folder / "data.npz", case.eps, flags, given.threads, folder)
    certificates = 6 if certify else 1  # each certificate has seconds of its own
    limit = LIMIT * seconds * certificates + ROOM
    found |= {"case": name, "images": case.images, "seconds": seconds, "certify": certify, "limit": limit}
    found["holds"] = bool(found["wall"] <= limit and found["cpu"] <= limit * given.threads)
    if seconds >= 60 and not certify and not given.without_ddn and "broken" in found:
        found["ddn"] = by_ddn(name, x, y)
        found["no_worse_than_ddn"] = found["broken"] >= found["ddn"] - 1e-9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=list(CASES))
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60])
    parser.add_argument("--only", choices=["budget", "certify"])
    parser.add_argument("--without-ddn", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the small network at 10 s")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.device = "cpu"
    torch.set_num_threads(given.threads)
    rows = []
    for name in [given.part] if given.part else ["mnist_conv"] if given.quick else list(CASES):
        for seconds in [10.0] if given.quick else given.seconds:
            for certify in [False] if given.quick or given.only == "budget" else [True] if given.only else [False, True]:
                rows.append(measure(name, seconds, certify, given))
                print(json.dumps(rows[-1]), flush=True)
    given.quick |= bool(given.part or given.only)
    finish("budget", {"rows": rows}, given, ["benchmarks/budget.py", "robustbench_rkhs/runtime/clock.py"])


if __name__ == "__main__":
    main()
