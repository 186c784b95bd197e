"""Proven Lipschitz bounds of linear layers of torch beside convolutions: borders, resizing, transposed and 3-d convolutions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.lipschitz.bounds import SLACK, Bound, Uncertifiable, affine, rule, spectral, upwards, weights
from robustbench_rkhs.lipschitz.convolution import Axis, operator_bound, overlap
from robustbench_rkhs.lipschitz.rounding import fan
from robustbench_rkhs.nodes.reasons import reason

BORDERS: tuple[type[Any], ...] = (
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.CircularPad1d,
    nn.CircularPad2d,
)
"""Paddings that repeat pixels."""
RESIZED = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic")
"""Modes of nn.Upsample whose map is one matrix for each axis."""


def matrix(along: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """The matrix of a linear map of sequences: (outputs, inputs)."""
    return along(torch.eye(size, dtype=torch.float64)[:, None])[:, 0].T


def run_on(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a layer gives. Raises Uncertifiable where it does not take this one, or does not keep two images apart."""
    try:
        found = tuple(module(torch.zeros(2, *shape, dtype=torch.float64)).shape)
    except (RuntimeError, ValueError, NotImplementedError) as refused:
        raise Uncertifiable(f"it does not take an input of shape {tuple(shape)}: {reason(refused)}") from None
    if found[:1] != (2,):
        raise Uncertifiable(f"it mixes images of shape {tuple(shape)}")
    return found[1:]


def _borders(module: nn.Module, shape: tuple[int, ...]) -> Bound:
    """The root of how often a pixel is repeated at most, counted on an image of numbers.

    Counted, not derived from the padding: torch reads a batch of vectors as one sequence of that many channels and pads it all
    the same, so that the padded axes do not follow from the shape.
    """
    found, size = run_on(module, shape), math.prod(shape)
    picked = module(torch.arange(2 * size, dtype=torch.float64).view(2, *shape))
    repeats = int(torch.bincount(picked.flatten().long()).max()) if picked.numel() else 0
    return Bound(upwards(math.sqrt(repeats)) if repeats > 1 else float(repeats), found)


for _kind in BORDERS:
    rule.register(_kind, _borders)
    affine.register(_kind, lambda module: True)


def resizing(module: nn.Upsample, sizes: Sequence[int]) -> list[Tensor]:
    """The matrix of each axis, from the layer's own function on images of one column. Raises Uncertifiable for other modes."""
    if module.mode not in RESIZED:
        raise Uncertifiable(f"no rule for mode {module.mode!r}, expected one of {', '.join(RESIZED)}")
    if why := jumping(module, (1, *sizes)):
        raise Uncertifiable(why)
    mode = {"linear": "bilinear", "nearest": "nearest", "nearest-exact": "nearest-exact"}.get(module.mode, module.mode)
    found = []
    for number, side in enumerate(sizes):
        size, factor = (_of_axis(given, number) for given in (module.size, module.scale_factor))
        options = {"align_corners": module.align_corners} if "nearest" not in mode else {}
        options["recompute_scale_factor"] = module.recompute_scale_factor

        def along(rows: Tensor, size: int | None = size, factor: float | None = factor) -> Tensor:
            target = {"size": (int(size), 1)} if size is not None else {"scale_factor": (float(factor or 1), 1.0)}
            out: Tensor = functional.interpolate(rows[..., None], mode=mode, **target, **options)  # type: ignore[arg-type]  # noqa: B023
            return out[..., 0]

        found.append(matrix(along, side))
    return found


def jumping(module: nn.Upsample, shape: tuple[int, ...]) -> str:
    """Why a nearest-neighbour resizing has no rule: rounding decides which pixel is nearest, another one in float32. Else empty."""
    if "nearest" not in module.mode:
        return ""
    for number, side in enumerate(shape[1:]):
        row = torch.arange(side, dtype=torch.float64).view(1, 1, *[side if i == number else 1 for i in range(len(shape) - 1)])
        image = row.expand(1, 4, *shape[1:]).contiguous()
        forms = [image, image.float(), *([image.float().to(memory_format=torch.channels_last)] if image.dim() == 4 else [])]
        if not all(torch.equal(module(form).double(), module(image)) for form in forms):
            return f"in mode {module.mode!r}, float32 and float64 take different pixels of an image with sides {tuple(shape[1:])}"
    return ""


def _of_axis(given: Any, number: int) -> Any:
    return given if given is None or isinstance(given, (int, float)) else given[number]


@rule.register
def _(module: nn.Upsample, shape: tuple[int, ...]) -> Bound:
    """The product of the norms of both matrices: a Kronecker product."""
    if len(shape) not in (2, 3):
        raise Uncertifiable(f"expected images or sequences, found shape {tuple(shape)}")
    norm = math.prod(spectral(one, SLACK) for one in resizing(module, shape[1:]))
    return Bound(upwards(norm), run_on(module, shape))


affine.register(nn.Upsample, lambda module: True)


@rule.register
def _(module: nn.Unflatten, shape: tuple[int, ...]) -> Bound:
    if module.dim == 0:
        raise Uncertifiable("it unflattens the batch")
    return Bound(1.0, run_on(module, shape))


@rule.register
def _(module: nn.ChannelShuffle, shape: tuple[int, ...]) -> Bound:
    return Bound(1.0, run_on(module, shape))


for _kind in (nn.Unflatten, nn.ChannelShuffle):
    affine.register(_kind, lambda module: True)
    fan.register(_kind, lambda module, inputs, outputs: (1, 1))


def _adjoint_axes(module: Any, shape: tuple[int, ...]) -> tuple[Tensor, list[Axis], tuple[int, ...]]:
    """The kernel (groups, outputs, inputs, taps) and the axes of the convolution whose adjoint a transposed one is, and the shape
    that it gives."""
    weight, dims = weights(module.weight, "weight"), len(module.kernel_size)
    if module.bias is not None:
        weights(module.bias, "bias")
    if len(shape) != dims + 1 or shape[0] != weight.shape[0]:
        raise Uncertifiable(f"expected {weight.shape[0]} channels and {dims} dimensions besides, found an input of shape {shape}")
    found = run_on(module, shape)
    stride, padding, dilation, taps = module.stride, module.padding, module.dilation, weight.shape[2:]
    axes = [Axis(found[1 + i], taps[i], stride[i], dilation[i], padding[i], padding[i]) for i in range(dims)]
    if tuple(axis.outputs for axis in axes) != shape[1:]:
        raise Uncertifiable(f"no rule for output_padding {module.output_padding} with stride {module.stride}")
    return weight.view(module.groups, -1, *weight.shape[1:]), axes, found


@rule.register(nn.ConvTranspose1d)
@rule.register(nn.ConvTranspose2d)
def _(module: nn.ConvTranspose1d | nn.ConvTranspose2d, shape: tuple[int, ...]) -> Bound:
    """The norm of the convolution whose adjoint it is; a sequence is an image of height one."""
    kernel, axes, found = _adjoint_axes(module, shape)
    if len(axes) == 1:
        kernel, axes = kernel[:, :, :, None], [Axis(1, 1, 1, 1, 0, 0), *axes]
    norm, method = operator_bound(kernel, (axes[0], axes[1]))
    return Bound(norm, found, method)


@rule.register
def _(module: nn.ConvTranspose3d, shape: tuple[int, ...]) -> Bound:
    """The norm of the convolution whose adjoint it is."""
    kernel, axes, found = _adjoint_axes(module, shape)
    norm, method = _volumes(kernel, axes)
    return Bound(norm, found, method)


@rule.register
def _(module: nn.Conv3d, shape: tuple[int, ...]) -> Bound:
    """`_volumes`, for zero padding."""
    weight = weights(module.weight, "weight")
    if module.bias is not None:
        weights(module.bias, "bias")
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise Uncertifiable(f"no rule for padding_mode {module.padding_mode!r} with padding {module.padding!r}")
    if len(shape) != 4:
        raise Uncertifiable(f"expected images of (channel, depth, height, width), found shape {tuple(shape)}")
    found, pads = run_on(module, shape), [int(pad) for pad in module.padding]
    axes = [Axis(shape[1 + i], weight.shape[2 + i], module.stride[i], module.dilation[i], pads[i], pads[i]) for i in range(3)]
    norm, method = _volumes(weight.view(module.groups, -1, *weight.shape[1:]), axes)
    return Bound(norm, found, method)


def _volumes(kernel: Tensor, axes: Sequence[Axis]) -> tuple[float, str]:
    """The smaller of sqrt(||M||_1 ||M||_inf), and the norm of the reshaped kernel times the root of the most windows with one
    voxel."""
    into, out = kernel.abs().flatten(2).sum(2).amax(1), kernel.abs().sum((1, 3, 4, 5)).amax(1)
    schur = (into.sqrt() * out.sqrt()).max().item()
    windows = math.sqrt(math.prod(overlap(axis) for axis in axes))
    reshaped = spectral(kernel.flatten(2), 0.0) * windows
    norm = min(upwards(schur, SLACK), upwards(reshaped))
    return norm if kernel.any() else 0.0, "schur" if schur <= reshaped else "reshaped"


for _kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Conv3d):
    affine.register(_kind, lambda module: True)
