"""Makes the other files of this folder again: mine.npz, net.safetensors and theirs/ (a minute on one core).

Run it in this folder: python make.py
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from mynets import build
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

TRAIN, TEST = 600, 200


def arrays() -> dict[str, np.ndarray]:
    """The first 800 of scikit-learn's digits as uint8 images of one channel, the last 200 of them to test on."""
    found = load_digits()
    images = (found.images * 255 / 16).round().astype(np.uint8)[: TRAIN + TEST, None]
    labels = found.target.astype(np.int64)[: TRAIN + TEST]
    return {"x_train": images[:TRAIN], "y_train": labels[:TRAIN], "x_test": images[TRAIN:], "y_test": labels[TRAIN:]}


def trained(x: torch.Tensor, y: torch.Tensor) -> torch.nn.Module:
    """The network of mynets.py after 40 epochs of plain training."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(40):
        for part in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    mine = arrays()
    np.savez_compressed("mine.npz", **mine)
    model = trained(torch.from_numpy(mine["x_train"]).float() / 255, torch.from_numpy(mine["y_train"]))
    save_file(model.state_dict(), "net.safetensors")
    shutil.rmtree("theirs", ignore_errors=True)
    words = "rkhs-train --model digits_mlp --out theirs --network.hidden [32] --epochs 10 --attack.steps 2"
    subprocess.run([*words.split(), "--about", "A small digits network, as a stranger might send it"], check=True)
    for left in ("resume.pt", "last.safetensors"):
        Path("theirs", left).unlink(missing_ok=True)  # only a training that goes on needs them
