"""Memory of an evaluation of many images: a weak network on 1,000, 10,000 and 50,000 images of MNIST.

    python benchmarks/attack_memory.py              # ten minutes of one core
    python benchmarks/attack_memory.py --quick      # 300 and 1,000 images

A tiny network is trained for a moment, and attacked by SuperDeepFool in blocks of 200, whatever the number of images. Each count
of images has a process of its own, which memory-maps the pixels and keeps its parts on disk. Its anonymous memory is read a
hundred times a second: what it allocated, without the pages of files (libraries, pixels), which the system maps and drops as it
likes. The peak of its resident memory, with them, is given beside it. The images are training images that the network was not
trained on: their number matters here, and no accuracy.
"""

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import ROOT, arguments, finish
from safetensors.torch import load_file, save_file
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import SuperDeepFool
from robustbench_rkhs.data import MNIST, NPY
from robustbench_rkhs.evaluation.run import evaluate

EPS, SEED, BLOCK, STEPS, LEARNT = 3.0, 0, 200, 200, 5000
MB = 2**20
SOURCES = [
    "benchmarks/attack_memory.py",
    *sorted(
        str(path.relative_to(ROOT))
        for folder in ("attacks", "data", "evaluation", "runtime", "verdicts")
        for path in (ROOT / "robustbench_rkhs" / folder).rglob("*.py")
    ),
]


def network(x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    """784-16-10, a moment of training."""
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for rows in torch.randint(len(x), (STEPS, 64)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


class Anonymous(threading.Thread):
    """The largest anonymous memory of this process while it runs, in MB; of Linux alone."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = anonymous()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.01):
            self.peak = max(self.peak, anonymous())

    def __enter__(self) -> "Anonymous":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def anonymous() -> float:
    """Anonymous memory of this process now, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024 / MB


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB


def measured(count: int, folder: Path) -> dict[str, Any]:
    """One evaluation, in this process."""
    split = NPY(path=str(folder / str(count))).test()
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    settings = {"eps": (EPS,), "attacks": (SuperDeepFool(),), "certificates": (), "block": BLOCK, "seed": SEED, "workers": 1}
    evaluate(model, split.take(torch.arange(300)), folder=folder / "first", **settings)  # what is loaded or compiled on first use
    before, started = peak(), time.process_time()
    with Anonymous() as held:
        done = evaluate(model, split, folder=folder / "found", name=f"of{count}", **settings)
    after = peak()
    states = verdicts.states(done, EPS)["state"].value_counts()
    summary = verdicts.summary(done).iloc[0]
    return {
        "images": count,
        "anonymous_before_mb": round(held.before, 1),
        "anonymous_peak_mb": round(held.peak, 1),
        "resident_before_mb": round(before, 1),
        "resident_peak_mb": round(after, 1),
        "pixels_mb": round(4 * count * 784 / MB, 1),
        "table_mb": round(float(done.table.memory_usage(deep=True).sum()) / MB, 1),
        "rows": len(done.table),
        "states": {str(name): int(number) for name, number in states.items()},
        "clean": round(float(summary["clean"]), 4),
        "robust": round(float(summary["robust"]), 4),
        "seconds": round(time.process_time() - started, 1),
    }


def prepared(counts: list[int], folder: Path) -> dict[str, Any]:
    """The weights, and each count of images in a folder, as bytes."""
    data = MNIST().load().train
    save_file(network(data.x[:LEARNT], data.y[:LEARNT]).state_dict(), folder / "weights.safetensors")
    unseen = data.take(torch.arange(LEARNT, len(data)))
    for count in counts:
        some = unseen.sample(count, SEED)
        (folder / str(count)).mkdir()
        np.save(folder / str(count) / "x_test.npy", (some.x * 255).round().to(torch.uint8).numpy())
        np.save(folder / str(count) / "y_test.npy", some.y.numpy())
    return {"data_digest": data.digest}


def apart(folder: str, threads: int, *counts: int) -> dict[str, Any]:
    """A process of its own, started by one that never held much: a process inherits the peak of the one that started it."""
    command = [sys.executable, __file__, "--apart", folder, str(threads), *map(str, counts)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1:2] == ["--apart"]:
        folder, threads, *counts = sys.argv[2:]
        torch.set_num_threads(int(threads))
        numbers = [int(count) for count in counts]
        print(json.dumps(prepared(numbers, Path(folder)) if len(numbers) > 1 else measured(numbers[0], Path(folder))))
        return
    given = arguments(__doc__ or "")
    counts = (300, 1000) if given.quick else (1000, 10_000, 50_000)
    with TemporaryDirectory() as folder:
        data = apart(folder, given.threads, *counts)
        runs = [apart(folder, given.threads, count) for count in counts]
    few, many = runs[0], runs[-1]
    growth = many["anonymous_peak_mb"] - few["anonymous_peak_mb"]
    heads = {
        "growth_mb": round(growth, 1),
        "growth_bytes_an_image": round(growth * MB / (many["images"] - few["images"])),
        "runs": runs,
        "eps": EPS,
        "norm": "l2",
        "attacks": "superdeepfool",
        "block": BLOCK,
        "seed": SEED,
        "data": "mnist",
        **data,
    }
    finish("attack_memory", heads, given, SOURCES)


if __name__ == "__main__":
    main()
