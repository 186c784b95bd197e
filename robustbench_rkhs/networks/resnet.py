"""Residual networks without BatchNorm, as in the RKHS-norm experiments."""

import math
from typing import Literal

from torch import nn

from robustbench_rkhs.layers.residual import Residual
from robustbench_rkhs.networks.base import NetworkNode, output_shape
from robustbench_rkhs.nodes.node import UserError

BLOCKS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks of each stage."""


class ResNet(NetworkNode):
    """A 3x3 stem of 64, stages of two-convolution blocks (64, 128, 256, 512; stride 2 from the second on), 4x4 averages, logits.

    No BatchNorm; convolutions without bias; 1x1 convolutions as shortcuts where shapes change. PyTorch's default
    initialisation. 11,164,362 parameters at depth 18 and ten classes.
    Source: He et al., CVPR 2016, as used by Bietti et al., ICML 2019.
    """

    name: Literal["resnet"] = "resnet"
    depth: Literal[18, 34] = 18
    """Weight layers."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        if len(shape) != 3 or min(shape[1:]) < 25:
            raise UserError(f"resnet needs images of at least 25x25 pixels, found shape {shape}")
        layers = [*self.first(shape), nn.Conv2d(shape[0], 64, 3, padding=1, bias=False), nn.ReLU()]
        channels = 64
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            width = 64 << stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers += [_block(channels, width, stride), nn.ReLU()]
                channels = width
        layers += [nn.AvgPool2d(4), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(math.prod(output_shape(layers, shape)), classes))


def _block(inputs: int, outputs: int, stride: int) -> Residual:
    body = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
    )
    if stride == 1 and inputs == outputs:
        return Residual(body, nn.Identity())
    return Residual(body, nn.Conv2d(inputs, outputs, 1, stride, bias=False))
