"""A dense network whose Lipschitz bound holds by construction."""

import math
from typing import Literal

from torch import nn

from robustbench_rkhs.layers.cayley import Start
from robustbench_rkhs.networks.families import Activation, BoundedNetwork, Family, Head, dense, ends, last
from robustbench_rkhs.nodes.node import Width


class LipschitzBounded(BoundedNetwork):
    r"""Dense layers of one family between two scales of sqrt(gamma): ||f(x) - f(x')||_2 <= gamma ||x - x'||_2
    after the normalisation, or in pixels (`lipschitz_in`).

    It holds for all weights. With `head: normalized` only differences of two logits are bounded; with family `plain` nothing is.
    Source: Wang & Manchester, ICML 2023 (Sandwich, Cayley-orthogonal, and their toy network of nine layers of 128).
    """

    name: Literal["lipschitz_bounded"] = "lipschitz_bounded"
    hidden: tuple[Width, ...] = (128, 128)
    """Widths of the layers."""
    family: Family = "sandwich"
    """The layer family."""
    activation: Activation = "relu"
    """Activation after layers that do not contain one."""
    head: Head = "bounded"
    """The last layer."""
    start: Start = "identity"
    """Where sandwich and orthogonal layers begin."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        first, before_last = ends(self)
        layers, features = [*self.first(shape), nn.Flatten(), first], math.prod(shape)
        for width in self.hidden:
            layers += dense(self.family, features, width, self.activation, self.start)
            features = width
        return nn.Sequential(*layers, before_last, *last(self.family, features, classes, self.head, self.start))
