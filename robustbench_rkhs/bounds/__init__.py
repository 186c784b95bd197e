"""Proven Lipschitz bounds of whole networks: `upper`, and `pairs` of classes; refusals name the layer."""

from robustbench_rkhs.bounds.eclipse import eclipse_pairs
from robustbench_rkhs.bounds.liplt import liplt_pairs, reached
from robustbench_rkhs.bounds.network import Step, combined, joined, margins_of, opened, pairs, stacked, steps, upper

__all__ = [
    "Step",
    "combined",
    "eclipse_pairs",
    "joined",
    "liplt_pairs",
    "margins_of",
    "opened",
    "pairs",
    "reached",
    "stacked",
    "steps",
    "upper",
]
