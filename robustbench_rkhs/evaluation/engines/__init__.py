"""Engines: compute jobs in this process, in several processes, or in one per device."""

from robustbench_rkhs.evaluation.engines.base import Engine, Outcome
from robustbench_rkhs.evaluation.engines.here import InProcess, Processes, started

__all__ = ["Engine", "InProcess", "Outcome", "Processes", "started"]
