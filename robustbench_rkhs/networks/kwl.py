"""Convolutional networks with directly parameterized Lipschitz layers: KWL (small, medium, large) and DNN."""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from robustbench_rkhs.networks.base import NetworkNode, output_shape
from robustbench_rkhs.networks.families import Activation, Family, Head, Padding, convolution, dense, ends, images_only, last
from robustbench_rkhs.nodes.node import Real


class _BoundedConvolutional(NetworkNode):
    """Fields of convolutional networks of one layer family between two scales of sqrt(gamma)."""

    family: Family = "sandwich"
    """The layer family; `plain` layers are unbounded."""
    lipschitz: Real = Field(1.0, gt=0)
    """The bound gamma, in logits per unit l2 of pixels (before any normalisation); the initial value if learnt."""
    learnable: bool = False
    """Learn the logarithm of gamma with the weights."""
    padding: Padding = "circular"
    """Padding of convolutions."""
    activation: Activation = "relu"
    """Activation after layers that do not contain one."""
    head: Head = "bounded"
    """The last layer; `normalized` bounds differences of two logits only."""

    def _assemble(
        self, shape: tuple[int, ...], classes: int, plan: list[tuple[int, int]], hidden: tuple[int, ...]
    ) -> nn.Sequential:
        """Convolutions of (channels, stride), flattened, dense layers, logits."""
        channels, *_ = images_only(str(getattr(self, "name", "")), shape)
        first, before_last = ends(self.lipschitz, self.learnable)
        layers = [*self.first(shape), first]
        for width, stride in plan:
            layers += convolution(self.family, channels, width, stride, 3, self.padding, self.activation)
            channels = width
        features = math.prod(output_shape(layers, shape))
        layers.append(nn.Flatten())
        for width in hidden:
            layers += dense(self.family, features, width, self.activation)
            features = width
        return nn.Sequential(*layers, before_last, *last(self.family, features, classes, self.head))


class KWL(_BoundedConvolutional):
    """Four 3x3 convolutions (32w, 32w stride 2, 64w, 64w stride 2), then dense layers and logits; w = 1, 2, 4: small to large.

    The first dense layer has 512w features for Sandwich and 640w for the others, the second 512.
    Source: Wang & Manchester, ICML 2023, after Li et al., NeurIPS 2019, and Trockman & Kolter, ICLR 2021.
    """

    name: Literal["kwl"] = "kwl"
    width: Literal[1, 2, 4] = 1
    """Multiplier w: 1 small, 2 medium, 4 large."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        w = self.width
        plan = [(32 * w, 1), (32 * w, 2), (64 * w, 1), (64 * w, 2)]
        return self._assemble(shape, classes, plan, ((512 if self.family == "sandwich" else 640) * w, 512))


class DNN(_BoundedConvolutional):
    """Pairs of 3x3 convolutions (64, 128, 256; from 64 pixels on also 512), the second of stride 2, then 2048-2048-1024 and logits.

    The network of the certified results: un-normalised input, `head: normalized`, gamma 1.
    Source: Wang & Manchester, ICML 2023.
    """

    name: Literal["dnn"] = "dnn"
    head: Head = "normalized"
    """The last layer; `normalized` bounds differences of two logits only."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        *_, height, _ = images_only(self.name, shape)
        widths = (64, 128, 256, 512) if height >= 64 else (64, 128, 256)
        plan = [(width, stride) for width in widths for stride in (1, 2)]
        return self._assemble(shape, classes, plan, (2048, 2048, 1024))
