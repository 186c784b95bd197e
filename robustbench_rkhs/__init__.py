"""Train regularized and Lipschitz-bounded classifiers, attack them, certify them, publish both radii of every image.

The verbs, each imported when it is first used: `load_model`, `train`, `evaluate`, `robust_accuracy`, `attack`, `certify`,
`plain_export`, `report`.
"""

import importlib
import importlib.metadata
from typing import Any

VERBS = {
    "load_model": "robustbench_rkhs.zoo",
    "evaluate": "robustbench_rkhs.zoo",
    "robust_accuracy": "robustbench_rkhs.zoo",
    "attack": "robustbench_rkhs.zoo",
    "certify": "robustbench_rkhs.zoo",
    "plain_export": "robustbench_rkhs.zoo",
    "train": "robustbench_rkhs.training.named",
    "report": "robustbench_rkhs.reports",
    "TrainRecipe": "robustbench_rkhs.training.recipe",
    "EvalRecipe": "robustbench_rkhs.evaluation.recipe",
    "UserError": "robustbench_rkhs.nodes.node",
}
"""Public names and the module that each comes from. No name here is a module of this package."""

__all__ = [*VERBS]
try:
    __version__ = importlib.metadata.version("robustbench_rkhs")
except importlib.metadata.PackageNotFoundError:  # run from its sources, without an installation
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(f"module 'robustbench_rkhs' has no attribute {name!r}")
    value = getattr(importlib.import_module(VERBS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*VERBS, *(name for name in globals() if name.startswith("__"))})
