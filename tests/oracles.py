"""Models whose answers are known: those of robustbench_rkhs.testing, and a small trained one."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustbench_rkhs.testing.oracles import Affine, affine, bent, constant_model, dense, masking_model

__all__ = ["Affine", "Trained", "affine", "bent", "constant_model", "dense", "masking_model", "trained_digits"]


class Trained(NamedTuple):
    """A small trained network and images of its data that it gets right."""

    model: nn.Sequential
    x: Tensor
    y: Tensor


def trained_digits(classes: int = 10, images: int = 60) -> Trained:
    """One hidden layer, trained for a moment on the digits below `classes`; test images (1, 8, 8) in [0, 1]."""
    stored = load_digits(n_class=classes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        order = torch.randperm(len(stored.target))
        x, y = torch.tensor(stored.images / 16, dtype=torch.float32)[order, None], torch.tensor(stored.target).long()[order]
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[100:]), y[100:]).backward()
            optimizer.step()
    right = (model(x[:100]).argmax(1) == y[:100]).nonzero().flatten()[:images]
    return Trained(model.eval(), x[right], y[right])
