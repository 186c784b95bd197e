"""Linear maps that traced code contains: values picked from the image, a matrix along one dimension, constants for each value."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, fan, rule
from robustbench_rkhs.lipschitz.bounds import SLACK, spectral, upwards, weights


class Pick(nn.Module):
    r"""y_i = x_{index(i)} for flattened images: permutations, slices, repeats and borders that repeat pixels.

    .. math:: \mathrm{Lip} = \sqrt{\max_j |\{i : \mathrm{index}(i) = j\}|}, \text{ attained at the pixel } j
    """

    index: Tensor

    def __init__(self, index: Int[Tensor, " outputs"], shape: tuple[int, ...], inputs: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.shape, self.inputs = tuple(shape), tuple(inputs)

    def forward(self, x: Float[Tensor, "batch *inputs"]) -> Float[Tensor, "batch *outputs"]:
        return x.flatten(1)[:, self.index].reshape(len(x), *self.shape)

    @property
    def repeats(self) -> int:
        """How often a value is picked at most."""
        return int(torch.bincount(self.index).max()) if len(self.index) else 0

    def extra_repr(self) -> str:
        return f"{self.inputs} to {self.shape}"


class Along(nn.Module):
    """A matrix (outputs, inputs) on one dimension of the images, counted without the batch: a mean over rows, x @ W.

    Its bound is the norm of the matrix: the map is the matrix's Kronecker product with identities.
    """

    weight: Tensor

    def __init__(self, dim: int, weight: Float[Tensor, "outputs inputs"]) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("weight", weight)

    def forward(self, x: Float[Tensor, "batch *inputs"]) -> Float[Tensor, "batch *outputs"]:
        return along(x, self.dim, self.weight.to(x.dtype))

    def extra_repr(self) -> str:
        return f"dimension {self.dim}, {self.weight.shape[1]} to {self.weight.shape[0]}"


def along(x: Tensor, dim: int, weight: Tensor) -> Tensor:
    """A matrix on a dimension counted without the batch."""
    return nn.functional.linear(x.movedim(dim + 1, -1), weight).movedim(-1, dim + 1)


class Diagonal(nn.Module):
    """y = scale x + shift with constants that broadcast to the images: a mask, a mean image, an embedding of positions."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Float[Tensor, "1 *inputs"], shift: Float[Tensor, "1 *inputs"]) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Float[Tensor, "batch *inputs"]) -> Float[Tensor, "batch *inputs"]:
        return x * self.scale + self.shift


@rule.register
def _(module: Pick, shape: tuple[int, ...]) -> Bound:
    if tuple(shape) != module.inputs:
        raise Uncertifiable(f"expected an input of shape {module.inputs}, found {tuple(shape)}")
    repeats = module.repeats
    return Bound(1.0 if repeats == 1 else upwards(math.sqrt(repeats)) if repeats else 0.0, module.shape)


@rule.register
def _(module: Along, shape: tuple[int, ...]) -> Bound:
    weight = weights(module.weight, "weight")
    if module.dim >= len(shape) or shape[module.dim] != weight.shape[1]:
        raise Uncertifiable(f"expected {weight.shape[1]} entries in dimension {module.dim}, found an input of shape {tuple(shape)}")
    return Bound(spectral(weight, SLACK), (*shape[: module.dim], weight.shape[0], *shape[module.dim + 1 :]))


@rule.register
def _(module: Diagonal, shape: tuple[int, ...]) -> Bound:
    scale, _ = weights(module.scale, "scale"), weights(module.shift, "shift")
    if torch.broadcast_shapes(scale.shape, module.shift.shape, (1, *shape)) != (1, *shape):
        raise Uncertifiable(f"its constants of shape {tuple(scale.shape[1:])} change an input of shape {tuple(shape)}")
    steepest = scale.abs().max().item()
    return Bound(upwards(steepest) if steepest else 0.0, tuple(shape))


@fan.register
def _(module: Pick, inputs: int, outputs: int) -> tuple[int, int]:
    return 1, max(1, module.repeats)


@fan.register
def _(module: Along, inputs: int, outputs: int) -> tuple[int, int]:
    return module.weight.shape[1], module.weight.shape[0]


fan.register(Diagonal, lambda module, inputs, outputs: (1, 1))
for _kind in (Pick, Along, Diagonal):
    affine.register(_kind, lambda module: True)
