"""A convolutional network for sequences."""

from typing import Literal

from pydantic import Field
from torch import nn

from robustbench_rkhs.networks.base import NetworkNode, output_shape
from robustbench_rkhs.nodes.node import UserError, Width

POOLS = {"max": nn.AdaptiveMaxPool1d, "average": nn.AdaptiveAvgPool1d}


class SequenceConvolutional(NetworkNode):
    """Convolutions along a sequence with ReLU, one number per channel pooled over its length, hidden layers, logits.

    Takes (channel, length). Convolutions are padded to keep the length (less one for an even kernel), before their stride.
    Max-pooling detects a motif at any position; averaging counts it, and divides the Lipschitz bound by sqrt(length).
    PyTorch's default initialisation. Raises UserError for inputs of another form, or too short.
    """

    name: Literal["sequence_convolutional"] = "sequence_convolutional"
    channels: tuple[Width, ...] = Field((64,), min_length=1)
    """Output channels of each convolution."""
    kernel: Width = 9
    """Kernel size of the convolutions."""
    stride: Width = 1
    """Stride of each convolution after the first."""
    pool: Literal["max", "average"] = "max"
    """Pooling over the whole length."""
    hidden: tuple[Width, ...] = ()
    """Widths of the layers between the pool and the logits."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        if len(shape) != 2:
            raise UserError(f"sequence_convolutional needs sequences of (channel, length), found shape {shape}")
        layers, width_in = self.first(shape), shape[0]
        for position, width in enumerate(self.channels):
            stride = 1 if position == 0 else self.stride
            layers += [nn.Conv1d(width_in, width, self.kernel, stride, padding=(self.kernel - 1) // 2), nn.ReLU()]
            width_in = width
        try:
            output_shape(layers, shape)
        except RuntimeError:
            raise UserError(f"sequence_convolutional: kernel {self.kernel} does not fit into sequences of shape {shape}") from None
        layers += [POOLS[self.pool](1), nn.Flatten()]
        for width in self.hidden:
            layers += [nn.Linear(width_in, width), nn.ReLU()]
            width_in = width
        return nn.Sequential(*layers, nn.Linear(width_in, classes))
