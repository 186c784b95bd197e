"""From what a user types or passes to a model with its images, and the verbs on both."""

from robustbench_rkhs.zoo.builders import load_builder
from robustbench_rkhs.zoo.data_names import SETS, named_data
from robustbench_rkhs.zoo.images import as_split
from robustbench_rkhs.zoo.models import as_module
from robustbench_rkhs.zoo.named import NamedModel, load_model, load_twin, normalised, smoothed, smoothing_from, training_images
from robustbench_rkhs.zoo.plain import plain_export
from robustbench_rkhs.zoo.verbs import attack, certify, evaluate, robust_accuracy

__all__ = [
    "SETS",
    "NamedModel",
    "as_module",
    "as_split",
    "attack",
    "certify",
    "evaluate",
    "load_builder",
    "load_model",
    "load_twin",
    "named_data",
    "normalised",
    "plain_export",
    "robust_accuracy",
    "smoothed",
    "smoothing_from",
    "training_images",
]
