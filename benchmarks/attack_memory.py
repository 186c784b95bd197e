"""Memory of an evaluation of many images: a weak network on 10,000 test images of MNIST against 1,000 of them.

    python benchmarks/attack_memory.py              # five minutes of one core
    python benchmarks/attack_memory.py --quick      # 200 and 1,000 images

A tiny network is trained for a moment, and evaluated with effort standard at one eps where hardly anything is robust: the attacks
see every right image, and the ensemble what is left. Each count of images has a process of its own, which is given them and the
weights and nothing else; its peak resident memory is read when these are there and at its end. What more images should cost: their
pixels as often as an evaluation holds them, and their rows of the table.
"""

import json
import resource
import subprocess
import sys
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
from robustbench_rkhs.data import MNIST
from robustbench_rkhs.evaluation.run import evaluate

EPS, SEED, BLOCK, STEPS = 3.0, 0, 200, 200
MB = 2**20
SOURCES = [
    "benchmarks/attack_memory.py",
    *sorted(
        str(path.relative_to(ROOT))
        for folder in ("attacks", "evaluation")
        for path in (ROOT / "robustbench_rkhs" / folder).glob("*.py")
    ),
    *(f"robustbench_rkhs/{name}.py" for name in ("attacking", "evaluate", "scrutiny", "shelf")),
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


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB


def measured(count: int, folder: Path) -> dict[str, Any]:
    """One evaluation, in this process."""
    stored = np.load(folder / f"{count}.npz")
    x, y = torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"])
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    settings = {"eps": (EPS,), "certificates": (), "block": BLOCK, "seed": SEED}
    evaluate(model, (x[:20], y[:20]), **settings)  # what is loaded or compiled on first use
    before, started = peak(), time.process_time()
    done = evaluate(model, (x, y), **settings)
    after = peak()
    states = verdicts.states(done, EPS)["state"].value_counts()
    return {
        "images": count,
        "before_mb": round(before, 1),
        "peak_mb": round(after, 1),
        "pixels_mb": round(x.numel() * x.element_size() / MB, 1),
        "table_mb": round(float(done.table.memory_usage(deep=True).sum()) / MB, 1),
        "rows": len(done.table),
        "states": {str(name): int(number) for name, number in states.items()},
        "clean": round(float(verdicts.summary(done)["clean"].iloc[0]), 4),
        "robust": round(float(verdicts.summary(done)["robust"].iloc[0]), 4),
        "seconds": round(time.process_time() - started, 1),
    }


def prepared(counts: list[int], folder: Path) -> dict[str, Any]:
    """The weights and each count of images, in files."""
    data = MNIST().load()
    save_file(network(data.train.x[:5000], data.train.y[:5000]).state_dict(), folder / "weights.safetensors")
    for count in counts:
        test = data.test.sample(count, SEED)
        np.savez(folder / f"{count}.npz", x=test.x.numpy(), y=test.y.numpy())
    return {"data_digest": data.test.digest}


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
    counts = (200, 1000) if given.quick else (1000, 10_000)
    with TemporaryDirectory() as folder:
        data = apart(folder, given.threads, *counts)
        few, many = (apart(folder, given.threads, count) for count in counts)
    more, growth = many["images"] - few["images"], many["peak_mb"] - few["peak_mb"]
    pixels, table = many["pixels_mb"] - few["pixels_mb"], many["table_mb"] - few["table_mb"]
    heads = {
        "growth_mb": round(growth, 1),
        "growth_pixels_mb": round(pixels, 1),
        "growth_table_mb": round(table, 1),
        "growth_kb_an_image": round(growth * 1024 / more, 2),
        "runs": [few, many],
        "eps": EPS,
        "norm": "l2",
        "effort": "standard",
        "block": BLOCK,
        "seed": SEED,
        "data": "mnist",
        **data,
    }
    finish("attack_memory", heads, given, SOURCES)


if __name__ == "__main__":
    main()
