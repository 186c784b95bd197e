"""The base class of network nodes: fields in, an nn.Sequential out."""

import torch
from torch import nn

from robustbench_rkhs.layers.normalize import Normalize
from robustbench_rkhs.nodes.node import Node, Real, UserError


class NetworkNode(Node):
    """Common fields of all networks. `build(shape, classes)` makes the module; the caller seeds torch."""

    mean: tuple[Real, ...] = ()
    """Mean that is subtracted from each channel inside the network; empty: no normalisation."""
    std: tuple[Real, ...] = ()
    """Standard deviation by which each channel is divided inside the network."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """The network for images of `shape` without the batch dimension. Raises UserError where it cannot take them."""
        raise TypeError(f"{type(self).__name__} is not a network by itself")

    def first(self, shape: tuple[int, ...]) -> list[nn.Module]:
        """The normalisation, as the first layer of the network."""
        if not self.mean and not self.std:
            return []
        if len(shape) != 3 or not len(self.mean) == len(self.std) == shape[0]:
            raise UserError(f"expected a mean and std for each channel of {shape}, found {len(self.mean)} and {len(self.std)}")
        return [Normalize(self.mean, self.std)]


def output_shape(layers: list[nn.Module], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the layers' output, without the batch dimension."""
    with torch.no_grad():
        return tuple(nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1:])
