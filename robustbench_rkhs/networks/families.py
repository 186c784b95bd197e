"""The 1-Lipschitz layer families by name: dense, convolutional and last layers of each."""

from typing import Literal

from pydantic import Field
from torch import nn

from robustbench_rkhs.layers import (
    AOL,
    BRO,
    CPL,
    SLL,
    SOC,
    AOLConv,
    BROConv,
    CPLConv,
    FirstFeatures,
    LearnableScale,
    LinearNormalized,
    MaxMin,
    Orthogonal,
    OrthogonalConv,
    PadChannels,
    Sandwich,
    SandwichConv,
    SandwichHead,
    SandwichLinear,
    Scale,
    SLLConv,
    SOCConv,
    SpaceToDepth,
)
from robustbench_rkhs.layers.cayley import Start
from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.nodes.node import Real, UserError

Family = Literal["sandwich", "orthogonal", "aol", "sll", "cpl", "bro", "soc", "plain"]
"""Layers of one kind; `plain` are unconstrained, for comparison."""
Activation = Literal["relu", "maxmin"]
"""MaxMin keeps the norm of gradients; ReLU halves it on average. Sandwich, SLL and CPL contain their ReLU."""
Padding = Literal["circular", "zeros"]
"""Padding of convolutions."""
Head = Literal["bounded", "normalized", "published"]
"""The last layer. `bounded`: any matrix of norm at most one; `normalized`: rows of norm one, certified by pairs of classes only;
`published`: as the authors' code ends it, where that differs (sandwich: y = B x + b; sll and cpl: the first features)."""


class BoundedNetwork(NetworkNode):
    """Fields of networks whose layers lie between two scales of sqrt(gamma)."""

    lipschitz: Real = Field(1.0, gt=0)
    """The bound gamma, in logits per unit l2 of what `lipschitz_in` says; the initial value if learnt."""
    lipschitz_in: Literal["normalized", "pixels"] = "normalized"
    """Units of `lipschitz`. normalized: of the images after `mean` and `std`, as published; in pixels the bound is then
    lipschitz / min(std). pixels: of [0, 1], whatever `std` is. Without `std` both are the same."""
    learnable: bool = False
    """Learn the logarithm of gamma with the weights."""


def dense(family: Family, inputs: int, outputs: int, activation: Activation = "relu", start: Start = "identity") -> list[nn.Module]:
    """A dense layer with its activation. Residual families keep their width: features are cropped or padded before them."""
    match family:
        case "sandwich":
            return [Sandwich(inputs, outputs, start)]
        case "orthogonal":
            return [Orthogonal(inputs, outputs, activation=activation, start=start)]
        case "aol":
            return [AOL(inputs, outputs, activation=activation)]
        case "bro":
            return [BRO(inputs, outputs, rank=max(1, min(inputs, outputs) // 2), activation=activation)]
        case "soc":
            return [SOC(inputs, outputs, activation=activation)]
        case "sll":
            return [*resized(inputs, outputs), SLL(outputs, outputs)]
        case "cpl":
            return [*resized(inputs, outputs), CPL(outputs, outputs)]
        case "plain":
            return [nn.Linear(inputs, outputs), MaxMin() if activation == "maxmin" else nn.ReLU()]


def convolution(
    family: Family,
    inputs: int,
    outputs: int,
    stride: int = 1,
    kernel: int = 3,
    padding: Padding = "circular",
    activation: Activation = "relu",
    start: Start = "identity",
) -> list[nn.Module]:
    """A convolution with its activation; sizes become ceil(n / stride)."""
    match family:
        case "sandwich":
            return [SandwichConv(inputs, outputs, kernel, stride, padding, start)]
        case "orthogonal":
            return [OrthogonalConv(inputs, outputs, kernel, stride, padding, activation=activation, start=start)]
        case "aol":
            return [AOLConv(inputs, outputs, kernel, stride, padding, activation=activation)]
        case "bro":
            return [BROConv(inputs, outputs, kernel_size=kernel, stride=stride, padding_mode=padding, activation=activation)]
        case "soc":
            return [SOCConv(inputs, outputs, kernel, stride, padding, activation=activation)]
        case "sll" | "cpl":
            shuffle: list[nn.Module] = [SpaceToDepth(stride)] if stride > 1 else []
            block = SLLConv if family == "sll" else CPLConv
            return [*shuffle, *resized(inputs * stride**2, outputs), block(outputs, outputs, kernel, padding)]
        case "plain":
            plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode=padding)
            return [plain, MaxMin() if activation == "maxmin" else nn.ReLU()]


def last(family: Family, features: int, classes: int, head: Head = "bounded", start: Start = "identity") -> list[nn.Module]:
    """The last layer, which outputs the logits."""
    if head == "normalized":
        return [LinearNormalized(features, classes)]
    match family:
        case "sandwich":
            return [(SandwichHead if head == "published" else SandwichLinear)(features, classes, start)]
        case "aol":
            return [AOL(features, classes, activation="none")]
        case "sll" | "cpl" if head == "published":
            return resized(features, classes)
        case "plain":
            return [nn.Linear(features, classes)]
        case _:
            return [Orthogonal(features, classes, activation="none", start=start)]


def resized(inputs: int, outputs: int) -> list[nn.Module]:
    """Features or channels cropped or padded with zeros, of norm one."""
    if inputs == outputs:
        return []
    return [PadChannels(outputs)] if inputs < outputs else [FirstFeatures(outputs)]


def ends(bound: BoundedNetwork) -> tuple[nn.Module, nn.Module]:
    """sqrt(gamma) for the network's input and for its last layer; one shared parameter if learnt.

    Where gamma holds in pixels it is first multiplied by the smallest std, as the normalisation before it has the bound 1 / std.
    """
    gamma = bound.lipschitz * (min(bound.std) if bound.std and bound.lipschitz_in == "pixels" else 1.0)
    if bound.learnable:
        shared = LearnableScale(gamma**0.5)
        return shared, shared
    return Scale(gamma**0.5), Scale(gamma**0.5)


def images_only(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width. Raises UserError at any other shape."""
    if len(shape) != 3:
        raise UserError(f"{name} needs images of (channel, height, width), found shape {shape}")
    return shape[0], shape[1], shape[2]
