"""Convolutional networks with directly parameterized Lipschitz layers: KWL (small, medium, large) and DNN."""

import math
from typing import Literal

from torch import nn

from robustbench_rkhs.layers import ScaledAveragePool
from robustbench_rkhs.layers.cayley import Start
from robustbench_rkhs.networks.base import output_shape
from robustbench_rkhs.networks.families import (
    Activation,
    BoundedNetwork,
    Family,
    Head,
    Padding,
    convolution,
    dense,
    ends,
    images_only,
    last,
)


class _BoundedConvolutional(BoundedNetwork):
    """Fields of convolutional networks of one layer family between two scales of sqrt(gamma)."""

    family: Family = "sandwich"
    """The layer family; `plain` layers are unbounded."""
    padding: Padding | None = None
    """Padding of convolutions. None: as published, zeros for aol and plain, circular for the others."""
    activation: Activation = "relu"
    """Activation after layers that do not contain one."""
    head: Head = "bounded"
    """The last layer; `normalized` bounds differences of two logits only."""
    start: Start = "identity"
    """Where sandwich and orthogonal layers begin."""

    def _assemble(
        self, shape: tuple[int, ...], classes: int, plan: list[tuple[int, int]], hidden: tuple[int, ...], pool: int = 1
    ) -> nn.Sequential:
        """Convolutions of (channels, stride), an average pool, flattened, dense layers, logits."""
        channels, *_ = images_only(str(getattr(self, "name", "")), shape)
        padding: Padding = self.padding or ("zeros" if self.family in ("aol", "plain") else "circular")
        first, before_last = ends(self)
        layers = [*self.first(shape), first]
        for width, stride in plan:
            layers += convolution(self.family, channels, width, stride, 3, padding, self.activation, self.start)
            channels = width
        layers += [ScaledAveragePool(pool)] if pool > 1 else []
        features = math.prod(output_shape(layers, shape))
        layers.append(nn.Flatten())
        for width in hidden:
            layers += dense(self.family, features, width, self.activation, self.start)
            features = width
        return nn.Sequential(*layers, before_last, *last(self.family, features, classes, self.head, self.start))


class KWL(_BoundedConvolutional):
    """Four 3x3 convolutions (32w, 32w stride 2, 64w, 64w stride 2), then dense layers and logits; w = 1, 2, 4: small to large.

    The first dense layer has 512w features for Sandwich and 640w for the others, the second 512w. Family aol has no strides but a
    4x4 average pool after the convolutions, as published.
    Source: Wang & Manchester, ICML 2023, after Li et al., NeurIPS 2019, and Trockman & Kolter, ICLR 2021.
    """

    name: Literal["kwl"] = "kwl"
    width: Literal[1, 2, 4] = 1
    """Multiplier w: 1 small, 2 medium, 4 large."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        w, stride, pool = self.width, *((1, 4) if self.family == "aol" else (2, 1))
        plan = [(32 * w, 1), (32 * w, stride), (64 * w, 1), (64 * w, stride)]
        hidden = ((512 if self.family == "sandwich" else 640) * w, 512 * w)
        return self._assemble(shape, classes, plan, hidden, pool)


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
