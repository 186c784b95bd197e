"""Conformance checks for methods, built-in or your own: `check_attack(MyAttack())`.

Each raises AssertionError that states the violated requirement. The package's own tests call the same functions.
"""

from robustbench_rkhs.testing.attacks import check_attack
from robustbench_rkhs.testing.certificates import check_certificate
from robustbench_rkhs.testing.data import check_data
from robustbench_rkhs.testing.invariances import CHANGES, check_invariance
from robustbench_rkhs.testing.layers import check_layer
from robustbench_rkhs.testing.networks import check_network
from robustbench_rkhs.testing.objectives import check_loss, check_penalty
from robustbench_rkhs.testing.projections import check_projection

__all__ = [
    "CHANGES",
    "check_attack",
    "check_certificate",
    "check_data",
    "check_invariance",
    "check_layer",
    "check_loss",
    "check_network",
    "check_penalty",
    "check_projection",
]
