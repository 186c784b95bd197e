"""The cost of a pass, estimated from the sizes of a model's weights."""

import math

from torch import nn


def estimated(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one pass of one image, about, without asking the model: each weight of a convolution counts once for every
    pixel, each other one once."""
    pixels = math.prod(shape[1:]) if len(shape) > 1 else 1
    return sum(one.numel() * (pixels if one.dim() > 2 else 1) for one in [*model.parameters(), *model.buffers()])
