"""Peak memory of an evaluation whose images are larger than memory: a sparse file of uint8 images, read block by block.

    python benchmarks/stream_memory.py --images 1000 50000 --side 224

Each number of images is evaluated in a process of its own, which prints its time and its peak. The images are zeros, which costs
no disk; each is read, hashed and asked as a real one would be, and certified where `--certify` names a certificate. Only `--right`
of them bear the label that the model gives them, so that as many are attacked whatever the number of images: the memory of an
attack is that of its block, and its time would hide that of reading.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from robustbench_rkhs import evaluate


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def measured(images: int, side: int, right: int, block: int, certify: str) -> str:
    """One evaluation of a folder of so many images: its time, and the peak after it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(side // 4), nn.Flatten(), nn.Linear(48, 10))
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        shape = (images, 3, side, side)
        np.lib.format.open_memmap(Path(folder) / "x_test.npy", "w+", np.uint8, shape).flush()
        answer = int(model(torch.zeros(1, *shape[1:])).argmax())
        labels = np.full(images, (answer + 1) % 10)
        labels[:right] = answer
        np.save(Path(folder) / "y_test.npy", labels)
        options = {"attacks": "pgd:steps=5,restarts=1", "certificates": certify, "diagnostics": False, "block": block}
        options["adversarials"] = False  # of at most 1 GiB of images they would be kept in memory
        started = time.perf_counter()
        done = evaluate(model, folder, eps="1/255", norm="l2", **options)
        took = time.perf_counter() - started
    size = 4 * np.prod(shape, dtype=np.float64) / 2**20
    row = done.summary().iloc[0]
    found = f"clean {row['clean']:.4f}, robust {row['robust']:.4f}, certified {row['certified']:.4f}"
    return f"{images} images ({size:,.0f} MiB as float32): {took:.0f} s, peak {peak():,.0f} MiB ({before:,.0f} before); {found}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 50_000])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--right", type=int, default=8)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--certify", default="none")
    given = parser.parse_args()
    if len(given.images) == 1:
        print(measured(given.images[0], given.side, given.right, given.block, given.certify), flush=True)
        return
    same = [f"--{name}={getattr(given, name)}" for name in ("side", "right", "block", "certify")]
    for images in given.images:
        subprocess.run([sys.executable, __file__, "--images", str(images), *same], check=True)


if __name__ == "__main__":
    main()
