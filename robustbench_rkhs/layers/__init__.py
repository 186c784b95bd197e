"""Layers with proven Lipschitz bounds; each file holds the layer and its rule."""

from robustbench_rkhs.layers.activations import GroupSort, MaxMin
from robustbench_rkhs.layers.aol import AOL, AOLConv
from robustbench_rkhs.layers.bro import BRO, BROConv
from robustbench_rkhs.layers.cayley import CayleyOrthogonal
from robustbench_rkhs.layers.concatenate import Concatenate
from robustbench_rkhs.layers.cpl import CPL, CPLConv
from robustbench_rkhs.layers.linear_residual import LinearResidual, LinearResidualConv
from robustbench_rkhs.layers.normalize import Normalize
from robustbench_rkhs.layers.normalized import LinearNormalized
from robustbench_rkhs.layers.orthogonal import Orthogonal, OrthogonalConv
from robustbench_rkhs.layers.residual import Residual
from robustbench_rkhs.layers.sandwich import Sandwich, SandwichHead, SandwichLinear
from robustbench_rkhs.layers.sandwich_conv import SandwichConv, SandwichConvLinear
from robustbench_rkhs.layers.scale import LearnableScale, Scale
from robustbench_rkhs.layers.shapes import FirstFeatures, PadChannels, ScaledAveragePool, SpaceToDepth
from robustbench_rkhs.layers.sll import SLL, SLLConv
from robustbench_rkhs.layers.soc import SOC, SOCConv

__all__ = [
    "AOL",
    "BRO",
    "CPL",
    "SLL",
    "SOC",
    "AOLConv",
    "BROConv",
    "CPLConv",
    "CayleyOrthogonal",
    "Concatenate",
    "FirstFeatures",
    "GroupSort",
    "LearnableScale",
    "LinearNormalized",
    "LinearResidual",
    "LinearResidualConv",
    "MaxMin",
    "Normalize",
    "Orthogonal",
    "OrthogonalConv",
    "PadChannels",
    "Residual",
    "SLLConv",
    "SOCConv",
    "Sandwich",
    "SandwichConv",
    "SandwichConvLinear",
    "SandwichHead",
    "SandwichLinear",
    "Scale",
    "ScaledAveragePool",
    "SpaceToDepth",
]
