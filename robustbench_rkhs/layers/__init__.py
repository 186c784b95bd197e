"""Layers whose Lipschitz bound is proved; each file holds the layer and its rule."""

from robustbench_rkhs.layers.activations import MaxMin
from robustbench_rkhs.layers.normalize import Normalize
from robustbench_rkhs.layers.residual import Residual
from robustbench_rkhs.layers.sandwich import Sandwich, SandwichLinear, Scale

__all__ = ["MaxMin", "Normalize", "Residual", "Sandwich", "SandwichLinear", "Scale"]
