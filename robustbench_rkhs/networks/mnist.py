"""The small network of the MNIST experiments."""

import math
from typing import Literal

from torch import nn

from robustbench_rkhs.networks.base import NetworkNode, output_shape
from robustbench_rkhs.nodes.node import UserError, Width


class MNISTStable(NetworkNode):
    """3x3 convolutions (padding 1) with ReLU to 64, 128, 256, 512 channels, each before a 2x2 average; linear logits; no bias.

    Averages instead of max-pools keep it closer to the stable kernel. Convolutions start from N(0, 2 / (9 C_out)).
    1,553,984 parameters on MNIST.
    Source: the five-layer network of Bietti et al., ICML 2019.
    """

    name: Literal["mnist_stable"] = "mnist_stable"
    channels: tuple[Width, ...] = (64, 128, 256, 512)
    """Output channels of each convolution."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        if len(shape) != 3 or min(shape[1:]) < 2 ** len(self.channels):
            least = 2 ** len(self.channels)
            raise UserError(f"mnist_stable needs images of at least {least}x{least} pixels, found shape {shape}")
        layers, width_in = self.first(shape), shape[0]
        for width in self.channels:
            convolution = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / (9 * width)))
            layers += [convolution, nn.ReLU(), nn.AvgPool2d(2)]
            width_in = width
        layers.append(nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(math.prod(output_shape(layers, shape)), classes, bias=False))
