"""A small convolutional network."""

import math
from typing import Literal

from torch import nn

from robustbench_rkhs.networks.base import NetworkNode, output_shape
from robustbench_rkhs.nodes.node import UserError, Width


class Convolutional(NetworkNode):
    """3x3 convolutions with ReLU, each after the first of stride 2, then hidden layers and logits.

    PyTorch's default initialisation.
    """

    name: Literal["convolutional"] = "convolutional"
    channels: tuple[Width, ...] = (16, 32)
    """Output channels of each convolution."""
    hidden: tuple[Width, ...] = (64,)
    """Widths of the hidden layers."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        if len(shape) != 3:
            raise UserError(f"convolutional needs images of (channel, height, width), found shape {shape}")
        layers, width_in = self.first(shape), shape[0]
        for position, width in enumerate(self.channels):
            layers += [nn.Conv2d(width_in, width, 3, stride=1 if position == 0 else 2, padding=1), nn.ReLU()]
            width_in = width
        features = math.prod(output_shape(layers, shape))
        layers.append(nn.Flatten())
        for width in self.hidden:
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        return nn.Sequential(*layers, nn.Linear(features, classes))
