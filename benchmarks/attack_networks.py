"""The networks that benchmarks/attacks.py attacks: trained once by our own recipes, kept in reports/benchmarks/attack_networks.

    python benchmarks/attack_networks.py           # trains those that are not there: half a minute for all three

Also wrappers that mask a network's gradients (part `masked`), and the images.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import ROOT
from torch import Tensor, nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.training.checkpoint import load
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe

DATA = {"name": "digits", "validation": 97, "seed": 0}
CONVOLUTIONAL = {"name": "convolutional", "channels": [16, 32, 64], "hidden": [80]}
SCHEDULE = {"schedule": {"name": "one_cycle", "peak": 0.3}, "batch_size": 64}
RECIPES: dict[str, dict[str, Any]] = {
    "adv": {
        "about": "A convolutional network of 45,000 parameters on digits, adversarially trained at l2 eps 0.5",
        "network": CONVOLUTIONAL,
        "attack": {"name": "pgd", "eps": 0.5, "steps": 7, "loss": "cross_entropy", "keep": "last", "targets": 0},
        "optimizer": {"name": "adam", "lr": 0.003},
        "epochs": 40,
    },
    "std": {
        "about": "The same convolutional network on digits, trained plainly",
        "network": CONVOLUTIONAL,
        "optimizer": {"name": "adam", "lr": 0.003},
        "epochs": 40,
    },
    "lip": {
        "about": "A 1-Lipschitz network on digits: orthogonal layers with MaxMin between them",
        "network": {"name": "lipschitz_bounded", "hidden": [64], "family": "orthogonal", "activation": "maxmin"},
        "loss": {"name": "cross_entropy", "temperature": 0.1, "offset": 0.5},
        "optimizer": {"name": "adam", "lr": 0.005},
        "epochs": 60,
    },
}


def network(name: str, quick: bool = False) -> nn.Module:
    """The kept network; trained where it is not there, or shortly in a folder of its own where `quick` and not there."""
    folder = ROOT / "reports" / "benchmarks" / "attack_networks" / name
    if not (folder / "config.json").is_file():
        recipe = {"data": DATA, **SCHEDULE, **RECIPES[name]}
        folder, recipe = (Path(tempfile.mkdtemp()), recipe | {"epochs": 6}) if quick else (folder, recipe)
        train(TrainRecipe.parse(recipe, name), folder, device="cpu", command="python benchmarks/attack_networks.py", fresh=True)
    return load(folder).model.eval()


def images(count: int) -> Split:
    """Of the digits test images, a seeded stratified sample."""
    return TrainRecipe.parse({"data": DATA, **SCHEDULE, **RECIPES["std"]}, "std").data.test().sample(count, 0)


class Rounded(nn.Module):
    """Answers cut off to a step: no gradient at all, and a margin that stands still."""

    def __init__(self, model: nn.Module, step: float) -> None:
        super().__init__()
        self.model, self.step = model, step

    def forward(self, x: Tensor) -> Tensor:
        return (self.model(x) / self.step).round() * self.step


class Quantised(nn.Module):
    """The input rounded to a few grey levels: no gradient past it."""

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * (self.levels - 1)).round() / (self.levels - 1))


class Wavy(nn.Module):
    """A ripple of the input, too small for the answers and steep enough for their gradients to point anywhere."""

    def __init__(self, model: nn.Module, size: float = 0.004, frequency: float = 2000.0) -> None:
        super().__init__()
        self.model, self.size, self.frequency = model, size, frequency

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.size * torch.sin(self.frequency * x))


class Saturated(nn.Module):
    """Probabilities so sure that float32 holds nothing but 0 and 1 nearly everywhere."""

    def __init__(self, model: nn.Module, steepness: float = 20.0) -> None:
        super().__init__()
        self.model, self.steepness = model, steepness

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.steepness * self.model(x), 1)


def masked(model: nn.Module) -> dict[str, nn.Module]:
    """Networks that are no more robust than `model` and have gradients that say nothing, or little."""
    return {
        "rounded": Rounded(model, 0.25),
        "quantised": Quantised(model, 9),
        "wavy": Wavy(model),
        "saturated": Saturated(model),
    }


if __name__ == "__main__":
    for each in RECIPES:
        print(each, sum(parameter.numel() for parameter in network(each).parameters()))
