"""Diagnostics beside every result: is a model robust, or is it only hard to attack?"""

from robustbench_rkhs.diagnostics.contract import FEWEST, SHARE, Diagnosis
from robustbench_rkhs.diagnostics.escalation import escalated
from robustbench_rkhs.diagnostics.run import CHECKS, diagnose

__all__ = ["CHECKS", "FEWEST", "SHARE", "Diagnosis", "diagnose", "escalated"]
