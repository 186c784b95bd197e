"""VGG without BatchNorm, as in the RKHS-norm experiments."""

import math
from typing import Literal

from torch import nn

from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.nodes.node import UserError, Width

PLANS: dict[int, tuple[int, ...]] = {
    11: (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    16: (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
}
"""Channels of each 3x3 convolution; 0 is a 2x2 max-pool."""


class VGG(NetworkNode):
    """3x3 convolutions (padding 1, bias) with ReLU, 2x2 max-pools, then two hidden layers of 512; no BatchNorm, no dropout.

    Convolutions start from N(0, 2 / (9 C_out)) with zero bias. 9,750,922 parameters at depth 11 and ten classes.
    Source: Simonyan & Zisserman, ICLR 2015, as used by Bietti et al., ICML 2019.
    """

    name: Literal["vgg"] = "vgg"
    depth: Literal[11, 16] = 11
    """Weight layers."""
    hidden: tuple[Width, ...] = (512, 512)
    """Widths of the layers between the convolutions and the logits."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        if len(shape) != 3 or min(shape[1:]) < 32:
            raise UserError(f"vgg needs images of at least 32x32 pixels, found shape {shape}")
        layers = self.first(shape)
        channels, pools = shape[0], 0
        for width in PLANS[self.depth]:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                pools += 1
                continue
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / (9 * width)))
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, nn.ReLU()]
            channels = width
        layers.append(nn.Flatten())
        features = channels * (shape[1] >> pools) * (shape[2] >> pools)
        for width in self.hidden:
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        return nn.Sequential(*layers, nn.Linear(features, classes))
