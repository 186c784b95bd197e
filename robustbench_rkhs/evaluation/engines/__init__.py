"""Engines: compute jobs in this process, in several, in the ranks of torchrun or srun, or on a Ray cluster."""

from robustbench_rkhs.evaluation.engines.base import Engine, Outcome, Place
from robustbench_rkhs.evaluation.engines.here import InProcess
from robustbench_rkhs.evaluation.engines.processes import Processes

__all__ = ["Engine", "InProcess", "Outcome", "Place", "Processes"]
