"""Differentiable sound bounds of a network over a ball: intervals, and linear bounds."""

from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations import standardised as standardised  # registers its bounds
from robustbench_rkhs.relaxations import traced_maps as traced_maps  # registers its bounds
from robustbench_rkhs.relaxations.interval import Step, Trace, trace
from robustbench_rkhs.relaxations.linear_bounds import crown_margins, interval_margins
from robustbench_rkhs.relaxations.region import Region, ball

__all__ = ["Box", "Norm", "Region", "Step", "Trace", "ball", "crown_margins", "interval_margins", "trace"]
