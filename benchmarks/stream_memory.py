"""Peak memory of an evaluation whose images are larger than memory: a sparse file of uint8 images, read block by block.

    python benchmarks/stream_memory.py --images 50000 --side 224

Prints the bytes of the images as float32, what the process held before the evaluation, and its peak. The images are zeros, which
costs no disk; what is read, hashed, asked and attacked is what real ones would be. Certificates are left out: their own memory is
that of the layers they bound, whatever the number of images.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from robustbench_rkhs import evaluate


def peak() -> float:
    """Largest resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--block", type=int, default=64)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(given.side // 4), nn.Flatten(), nn.Linear(48, 10))
    with tempfile.TemporaryDirectory() as folder:
        shape = (given.images, 3, given.side, given.side)
        np.lib.format.open_memmap(Path(folder) / "x_test.npy", "w+", np.uint8, shape).flush()
        label = int(model(torch.zeros(1, *shape[1:])).argmax())
        np.save(Path(folder) / "y_test.npy", np.full(given.images, label))
        before, started = peak(), time.perf_counter()
        options = {"attacks": "superdeepfool:steps=2", "certificates": (), "diagnostics": False, "block": given.block}
        done = evaluate(model, folder, eps="1/255", norm="l2", **options)
        took = time.perf_counter() - started
    size = 4 * np.prod(shape) / 2**20
    print(f"{given.images} images of {given.side}x{given.side}: {size:,.0f} MiB as float32")
    print(f"peak {peak():,.0f} MiB, of which {before:,.0f} before the evaluation; {took:.0f} s")
    print(done.summary().to_string(index=False))


if __name__ == "__main__":
    main()
