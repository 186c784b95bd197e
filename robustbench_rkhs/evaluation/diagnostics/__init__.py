"""Diagnostics for gradient masking: is a model robust, or only hard to attack?"""

from robustbench_rkhs.evaluation.diagnostics.base import FEWEST, SHARE
from robustbench_rkhs.evaluation.diagnostics.diagnosis import CHECKS, diagnose, sampled
from robustbench_rkhs.evaluation.diagnostics.escalation import escalated
from robustbench_rkhs.verdicts import Diagnosis

__all__ = ["CHECKS", "FEWEST", "SHARE", "Diagnosis", "diagnose", "escalated", "sampled"]
