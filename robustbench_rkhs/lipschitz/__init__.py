"""Proven Lipschitz bounds of single layers, by type; a layer without a rule is refused by name."""

from robustbench_rkhs.lipschitz import activations as activations  # these register their rules
from robustbench_rkhs.lipschitz import convolution as convolution
from robustbench_rkhs.lipschitz import linear_maps as linear_maps
from robustbench_rkhs.lipschitz import normalizations as normalizations
from robustbench_rkhs.lipschitz import pools as pools
from robustbench_rkhs.lipschitz import rearrangements as rearrangements
from robustbench_rkhs.lipschitz import sequences as sequences
from robustbench_rkhs.lipschitz.bounds import Bound, Uncertifiable, affine, rule
from robustbench_rkhs.lipschitz.guard import branches, gathered
from robustbench_rkhs.lipschitz.rounding import constants, fan

__all__ = [
    "Bound",
    "Uncertifiable",
    "affine",
    "branches",
    "constants",
    "fan",
    "gathered",
    "rule",
]
