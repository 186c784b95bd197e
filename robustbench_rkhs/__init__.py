"""Train regularized and Lipschitz-bounded classifiers, attack them, certify them, publish both radii of every image.

The verbs, imported when first used: `load_model`, `train`, `evaluate`, `report`.
"""

import importlib
from typing import Any

VERBS = {
    "load_model": ("robustbench_rkhs.subjects", "load_model"),
    "train": ("robustbench_rkhs.train", "train"),
    "evaluate": ("robustbench_rkhs.evaluate", "evaluate"),
    "report": ("robustbench_rkhs.report", "report"),
    "TrainRecipe": ("robustbench_rkhs.recipe", "TrainRecipe"),
    "EvalRecipe": ("robustbench_rkhs.recipe", "EvalRecipe"),
    "UserError": ("robustbench_rkhs.node", "UserError"),
}

__all__ = list(VERBS)


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(f"module 'robustbench_rkhs' has no attribute {name!r}")
    module, attribute = VERBS[name]
    return getattr(importlib.import_module(module), attribute)
