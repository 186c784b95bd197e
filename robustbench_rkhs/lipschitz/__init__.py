"""Proven Lipschitz bounds: `upper` by type, `pairs` of logits; what is not proved is refused by name."""

from robustbench_rkhs.lipschitz import convolution as convolution  # these add their rules
from robustbench_rkhs.lipschitz import normalizations as normalizations
from robustbench_rkhs.lipschitz import pools as pools
from robustbench_rkhs.lipschitz import rearrangements as rearrangements
from robustbench_rkhs.lipschitz import sequences as sequences
from robustbench_rkhs.lipschitz.bounds import Bound, Uncertifiable, affine, rule
from robustbench_rkhs.lipschitz.chains import Step, combined, joined, opened, pairs, stacked, steps, upper
from robustbench_rkhs.lipschitz.eclipse import eclipse_pairs
from robustbench_rkhs.lipschitz.guard import branches, gathered
from robustbench_rkhs.lipschitz.liplt import liplt_pairs
from robustbench_rkhs.lipschitz.rounding import constants, fan

__all__ = [
    "Bound",
    "Step",
    "Uncertifiable",
    "affine",
    "branches",
    "combined",
    "constants",
    "eclipse_pairs",
    "fan",
    "gathered",
    "joined",
    "liplt_pairs",
    "opened",
    "pairs",
    "rule",
    "stacked",
    "steps",
    "upper",
]
