"""Layers whose Lipschitz bound is proved; each file holds the layer and its rule."""

from robustbench_rkhs.layers.activations import MaxMin
from robustbench_rkhs.layers.bro import BRO, BROConv
from robustbench_rkhs.layers.cayley import CayleyOrthogonal
from robustbench_rkhs.layers.normalize import Normalize
from robustbench_rkhs.layers.orthogonal import Orthogonal, OrthogonalConv
from robustbench_rkhs.layers.residual import Residual
from robustbench_rkhs.layers.sandwich import Sandwich, SandwichLinear
from robustbench_rkhs.layers.sandwich_conv import SandwichConv, SandwichConvLinear
from robustbench_rkhs.layers.scale import LearnableScale, Scale

__all__ = [
    "BRO",
    "BROConv",
    "CayleyOrthogonal",
    "LearnableScale",
    "MaxMin",
    "Normalize",
    "Orthogonal",
    "OrthogonalConv",
    "Residual",
    "Sandwich",
    "SandwichConv",
    "SandwichConvLinear",
    "SandwichLinear",
    "Scale",
]
