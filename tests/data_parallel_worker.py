"""Trains one tiny recipe for each method, in one process or two (test_data_parallel.py)."""

from pathlib import Path

from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe

BASE = {
    "data": {"name": "digits", "train": 128, "validation": 32, "crop": 1, "flip": True},
    "network": {"name": "mlp", "hidden": [16], "mean": [0.3], "std": [0.4]},
    "epochs": 2,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "lr": 0.02},
}
RECIPES = {  # a new method whose value depends on the whole batch, or that draws at random, adds a line here
    "cross_entropy": {},
    "pgd": {"attack": {"name": "pgd", "eps": 0.2, "steps": 2, "start": "random"}},
    "gradient": {"penalties": [{"name": "gradient", "weight": 0.01}]},
    "trades": {"loss": {"name": "trades", "norm": "l2", "eps": 0.2, "steps": 2}},
    "mma": {"loss": {"name": "mma", "eps_max": 0.5, "steps": 2, "bisections": 4}},
    "crown_ibp": {"loss": {"name": "crown_ibp", "eps": 0.02, "beta": 0.5, "schedule": {"eps": {"end": 0.5}}}},
    "mtl_ibp": {"loss": {"name": "mtl_ibp", "eps": 0.02, "steps": 2}},
    "cc_ibp": {"loss": {"name": "cc_ibp", "eps": 0.02, "steps": 2}},
    "sabr": {"loss": {"name": "sabr", "eps": 0.02, "steps": 2}},
    "adversarial_perturbation": {"penalties": [{"name": "adversarial_perturbation", "eps": 0.3, "steps": 2, "chunk": 24}]},
    "loss_gradient": {"penalties": [{"name": "loss_gradient", "weight": 0.1}]},
    "virtual_adversarial": {"penalties": [{"name": "virtual_adversarial", "eps": 0.3}]},
    "consistency": {"noise": 0.1, "penalties": [{"name": "consistency", "sigma": 0.1}]},
    "spectral_norm": {"penalties": [{"name": "spectral_norm", "weight": 0.01}]},
    "jacobian": {"penalties": [{"name": "jacobian", "projections": 1}]},
    "curvature": {"penalties": [{"name": "curvature", "weight": 0.01}]},
    "function_norm": {"penalties": [{"name": "function_norm", "sampler": {"name": "uniform"}}]},
    "deformation_stability": {"penalties": [{"name": "deformation_stability", "deformations": {"count": 1}}]},
    "deformation_tangent": {"penalties": [{"name": "deformation_tangent", "deformations": {"count": 1}}]},
    "sandwich": {"network": {"name": "lipschitz_bounded", "hidden": [16]}, "loss": {"name": "multi_margin"}},
    "projection": {"projections": [{"name": "spectral", "tau": 1.0}]},
}


def train_each(folder: Path) -> None:
    """Train every recipe, into folders of its name."""
    for name, changes in RECIPES.items():
        train(TrainRecipe.parse(BASE | changes), folder / name)
