"""Sweeps: grids and searches over recipe fields, with any number of workers; the best setting is picked on validation images."""

from robustbench_rkhs.sweep.description import Prune, Range, Sweep
from robustbench_rkhs.sweep.engines import Worker, swept
from robustbench_rkhs.sweep.plan import Plan
from robustbench_rkhs.sweep.worker import check, gather, work

__all__ = ["Plan", "Prune", "Range", "Sweep", "Worker", "check", "gather", "swept", "work"]
