"""A network whose Lipschitz bound holds by construction."""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from robustbench_rkhs.networks.contract import NetworkNode
from robustbench_rkhs.node import Real


class LipschitzBounded(NetworkNode):
    r"""Dense Sandwich layers between two scales of sqrt(gamma): ||f(x) - f(x')||_2 <= gamma ||x - x'||_2, whatever the weights.

    Source: Wang & Manchester, ICML 2023.
    """

    name: Literal["lipschitz_bounded"] = "lipschitz_bounded"
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the Sandwich layers."""
    lipschitz: Real = Field(1.0, gt=0)
    """The bound gamma, in logits per unit l2 of pixels (before any normalisation)."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        from robustbench_rkhs.layers import Sandwich, SandwichLinear, Scale

        root = math.sqrt(self.lipschitz)
        layers, features = [*self.first(shape), nn.Flatten(), Scale(root)], math.prod(shape)
        for width in self.hidden:
            layers.append(Sandwich(features, width))
            features = width
        return nn.Sequential(*layers, Scale(root), SandwichLinear(features, classes))
