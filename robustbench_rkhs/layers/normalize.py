"""The normalisation of pixels, as the first layer of a model."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, fan, rule
from robustbench_rkhs.lipschitz.bounds import upwards, weights
from robustbench_rkhs.nodes.node import UserError


class Normalize(nn.Module):
    r"""Each channel's pixels less their mean, divided by their standard deviation.

    .. math:: y_c = (x_c - \mu_c) / \sigma_c, \qquad L = 1 / \min_c \sigma_c

    Units: pixels of [0, 1] in, standard deviations out. Cost: two operations per pixel.
    Raises UserError where mean and std have different lengths, a number is not finite, or a deviation is not above zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not len(mean) == len(std) >= 1:
            raise UserError(f"Normalize: expected one mean and std per channel, found {len(mean)} and {len(std)}")
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise UserError(f"Normalize: expected finite means and std above 0, found {tuple(mean)} and {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        if x.shape[-3:-2] != self.mean.shape[:1]:
            raise UserError(f"Normalize: expected images of {len(self.mean)} channels, found shape {tuple(x.shape)}")
        return (x - self.mean) / self.std


@rule.register
def _(module: Normalize, shape: tuple[int, ...]) -> Bound:
    weights(module.mean, "mean")
    smallest = weights(module.std, "std").min().item()
    if smallest <= 0:
        raise Uncertifiable(f"expected std above 0, found {smallest}")
    if len(shape) != 3 or shape[0] != len(module.mean):
        raise Uncertifiable(f"expected images of {len(module.mean)} channels, found an input of shape {shape}")
    return Bound(upwards(1 / smallest), shape)


affine.register(Normalize, lambda module: True)
fan.register(Normalize, lambda module, inputs, outputs: (1, 1))
