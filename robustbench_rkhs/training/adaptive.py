"""Adaptive penalty weights: the weight follows a number measured on validation."""

import math
from typing import Literal

from pydantic import Field

from robustbench_rkhs.nodes.node import Node, Real


class Adaptive(Node):
    r"""After each epoch multiply one penalty's weight so that a measured number approaches its target.

    .. math:: w \leftarrow w \cdot e^{\,r\, (m^* - m) / |m^*|}, \qquad w_0 / c \le w \le c\, w_0

    m is measured on validation: `margin` (mean margin in logits), `robust` or `clean` (accuracy). The exponent is clamped to
    [-r, r]. With `margin` or `robust` the weight grows while the model is less robust than its target; with `clean` it shrinks
    while the model is less accurate than its target.
    """

    penalty: int = Field(0, ge=0)
    """Position in the recipe's penalties."""
    measure: Literal["margin", "robust", "clean"] = "margin"
    """The number measured on validation."""
    target: Real = Field(gt=0)
    """Its target m*: logits, or an accuracy in [0, 1]."""
    rate: Real = Field(0.2, gt=0)
    """Speed r: the largest change of the weight's logarithm in an epoch."""
    limit: Real = Field(100.0, ge=1)
    """The weight stays within this factor c of the recipe's."""

    def __call__(self, factor: float, record: dict[str, float]) -> float:
        """The new factor of the penalty's weight."""
        lacking = (self.target - record[f"validation_{self.measure}"]) / self.target
        direction = -1.0 if self.measure == "clean" else 1.0
        change = self.rate * min(1.0, max(-1.0, direction * lacking))
        return min(self.limit, max(1 / self.limit, factor * math.exp(change)))
