"""Deep Lipschitz-bounded networks of residual layers: SLL or CPL blocks, and the linear-residual LiResNet."""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from robustbench_rkhs.layers import (
    CPL,
    SLL,
    CPLConv,
    FirstFeatures,
    LinearNormalized,
    LinearResidualConv,
    MaxMin,
    PadChannels,
    ScaledAveragePool,
    SLLConv,
)
from robustbench_rkhs.networks.base import NetworkNode, output_shape
from robustbench_rkhs.networks.families import BoundedNetwork, Head, Padding, ends, images_only
from robustbench_rkhs.nodes.node import WIDEST, UserError, Width


class LipschitzResNet(BoundedNetwork):
    """Channels padded to `channels`, `blocks` convolutional residual layers, 4x4 average pooling, dense ones, the first K features.

    Small, as published: 20 blocks of 45 channels and 7 dense ones (41.4 million parameters at 32x32 pixels). Medium: 30, 60, 10.
    Large: 90, 60, 15. Published inner widths: 5 channels, 2048 features.
    Source: Araujo et al. (SLL), ICLR 2023; Meunier et al. (CPL), ICML 2022; sizes as in Wang & Manchester, ICML 2023.
    """

    name: Literal["lipschitz_resnet"] = "lipschitz_resnet"
    family: Literal["sll", "cpl"] = "sll"
    """The family of residual layers."""
    blocks: Width = 20
    """Convolutional layers."""
    channels: Width = 45
    """Their width."""
    dense_blocks: int = Field(7, ge=0, le=WIDEST)
    """Dense layers after the pooling."""
    inner_channels: Width = 5
    """Inner width of a convolutional block, at its ReLU."""
    inner_features: Width = 2048
    """Inner width of a dense block."""
    padding: Padding = "zeros"
    """Padding of convolutions."""
    head: Head = "bounded"
    """`bounded` and `published`: the first features are the logits; `normalized`: a layer with rows of norm one."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        channels, *_ = images_only(self.name, shape)
        if channels > self.channels:
            raise UserError(f"lipschitz_resnet: expected at least {channels} channels, found {self.channels}")
        first, before_last = ends(self)
        layers: list[nn.Module] = [*self.first(shape), first, PadChannels(self.channels)]
        block, dense_block = (SLLConv, SLL) if self.family == "sll" else (CPLConv, CPL)
        layers += [block(self.channels, self.inner_channels, 3, self.padding) for _ in range(self.blocks)]
        layers += [ScaledAveragePool(4), nn.Flatten()]
        features = math.prod(output_shape(layers, shape))
        layers += [dense_block(features, self.inner_features) for _ in range(self.dense_blocks)]
        if self.head == "normalized":
            return nn.Sequential(*layers, before_last, LinearNormalized(features, classes))
        if features < classes:
            raise UserError(f"lipschitz_resnet: {features} features cannot hold {classes} logits; expected more channels")
        return nn.Sequential(*layers, before_last, FirstFeatures(classes))


class LiResNet(NetworkNode):
    r"""A stem, `blocks` linear residual convolutions x + W*x each with MaxMin, a strided neck, a dense layer, a normalised head.

    No layer but the head is 1-Lipschitz by construction: the proven bound is the product of the layers' bounds, and training must
    keep it small (by a loss of margins over the bound, or a projection). Each residual convolution is merged into one convolution.
    Source: Hu et al., "Unlocking Deterministic Robustness Certification on ImageNet", NeurIPS 2023.
    """

    name: Literal["liresnet"] = "liresnet"
    blocks: Width = 4
    """Linear residual convolutions."""
    channels: int = Field(64, ge=2, le=WIDEST)
    """Their width; even."""
    features: int = Field(256, ge=2, le=WIDEST)
    """Width of the dense layer; even."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        channels, *_ = images_only(self.name, shape)
        if self.channels % 2 or self.features % 2:
            raise UserError(f"liresnet: expected even widths (MaxMin pairs them), found {self.channels} and {self.features}")
        layers: list[nn.Module] = [*self.first(shape), nn.Conv2d(channels, self.channels, 3, 2, 1), MaxMin()]
        for _ in range(self.blocks):
            layers += [LinearResidualConv(self.channels), MaxMin()]
        layers += [nn.Conv2d(self.channels, self.channels, 4, 4), MaxMin(), nn.Flatten()]
        features = math.prod(output_shape(layers, shape))
        layers += [nn.Linear(features, self.features), MaxMin()]
        return nn.Sequential(*layers, LinearNormalized(self.features, classes))
