"""The RKHS-norm report: lower and upper bounds, and the resulting margin bound on adversarial error."""

from robustbench_rkhs.rkhs_norm.lower import Bounds
from robustbench_rkhs.rkhs_norm.margins import MarginBound, margin_bound, margins_of
from robustbench_rkhs.rkhs_norm.report import norm_report
from robustbench_rkhs.rkhs_norm.sides import Norms, Unsound, norms

__all__ = ["Bounds", "MarginBound", "Norms", "Unsound", "margin_bound", "margins_of", "norm_report", "norms"]
