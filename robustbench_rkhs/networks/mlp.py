"""A multilayer perceptron."""

import math
from typing import Literal

from torch import nn

from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.nodes.node import Width


class MLP(NetworkNode):
    """Flatten, hidden layers with ReLU, logits. PyTorch's default initialisation."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Width, ...] = (128, 128)
    """Widths of the hidden layers."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        layers, features = [*self.first(shape), nn.Flatten()], math.prod(shape)
        for width in self.hidden:
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        return nn.Sequential(*layers, nn.Linear(features, classes))
