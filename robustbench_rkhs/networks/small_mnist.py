"""The two small networks of the function-norm experiments."""

from typing import Literal

from torch import nn

from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.nodes.node import UserError


class Net(NetworkNode):
    """5x5 convolutions of 10 and 20 channels, each with a 2x2 max-pool and ReLU, a hidden layer of 50, logits.

    21,840 parameters on MNIST, with or without dropout. PyTorch's default initialisation.
    Source: Rannen Triki et al., arXiv 1710.06703 (code), after PyTorch's MNIST example.
    """

    name: Literal["function_norm_net"] = "function_norm_net"
    dropout: bool = False
    """Drop half of the second convolution's channels and half of the hidden layer while training."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        height, width = _after_two(shape, "function_norm_net", smallest=1)
        layers = [*self.first(shape), nn.Conv2d(shape[0], 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5)]
        if self.dropout:
            layers.append(nn.Dropout2d(0.5))
        layers += [nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(20 * height * width, 50), nn.ReLU()]
        if self.dropout:
            layers.append(nn.Dropout(0.5))
        return nn.Sequential(*layers, nn.Linear(50, classes))


class LeNet(NetworkNode):
    """5x5 convolutions of 20 and 50 channels, each with a 2x2 max-pool, a 4x4 one of 500, logits; no ReLU anywhere.

    431,080 parameters on MNIST, 432,220 with BatchNorm. The max-pools alone keep it from being affine. PyTorch's default
    initialisation. Source: Rannen Triki et al., arXiv 1710.06703 (code); LeCun et al., 1998.
    """

    name: Literal["lenet"] = "lenet"
    batch_norm: bool = False
    """BatchNorm after each max-pool and after the last convolution."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        height, width = _after_two(shape, "lenet", smallest=4)

        def norm(channels: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(channels)] if self.batch_norm else []

        layers = [*self.first(shape), nn.Conv2d(shape[0], 20, 5), nn.MaxPool2d(2), *norm(20)]
        layers += [nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), *norm(50), nn.Conv2d(50, 500, 4), *norm(500), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(500 * (height - 3) * (width - 3), classes))


def _after_two(shape: tuple[int, ...], name: str, smallest: int) -> tuple[int, int]:
    """Height and width after two 5x5 convolutions with 2x2 pools. Raises UserError where they end below `smallest`."""
    sides = [((side - 4) // 2 - 4) // 2 for side in shape[1:]]
    if len(shape) != 3 or min(sides) < smallest:
        least = 4 * smallest + 12
        raise UserError(f"{name} needs images of (channel, height, width) with at least {least} pixels a side, found shape {shape}")
    return sides[0], sides[1]
