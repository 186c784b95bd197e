"""CROWN: linear bounds propagated from the logits back to the image, with intervals at every nonlinearity."""

from collections.abc import Callable
from functools import singledispatch
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers import (
    FirstFeatures,
    GroupSort,
    LearnableScale,
    MaxMin,
    Normalize,
    PadChannels,
    Scale,
    ScaledAveragePool,
    SpaceToDepth,
)
from robustbench_rkhs.layers.traced_maps import Diagonal
from robustbench_rkhs.relaxations.expansion import Exchange
from robustbench_rkhs.relaxations.interval import NoRule, Step, Trace, diagonal, forked, kink
from robustbench_rkhs.relaxations.planes import Bent, Planes, lines_of_gap, lines_of_kink, lines_of_smooth, lines_of_windows
from robustbench_rkhs.relaxations.region import Region, wide
from robustbench_rkhs.relaxations.rounding import LEAST, most
from robustbench_rkhs.relaxations.unit_box import drop
from robustbench_rkhs.runtime.clock import ask

POOLS = (nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, ScaledAveragePool)
MOVES = (nn.ZeroPad2d, nn.PixelUnshuffle, nn.PixelShuffle, SpaceToDepth, PadChannels, FirstFeatures)
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, *POOLS, *MOVES)
DIAGONAL = (Normalize, Scale, LearnableScale, Diagonal, nn.BatchNorm1d, nn.BatchNorm2d)


class Lines(NamedTuple):
    """Linear lower bounds A z + b, one per row, in the inputs z of a layer."""

    slopes: Float[Tensor, "batch rows *shape"]
    """A."""
    offsets: Float[Tensor, "batch rows"]
    """b."""
    errors: Float[Tensor, "batch rows"] | None = None
    """How much the bounds must be lowered for float rounding; None: not accounted for."""


def margin_rows(y: Int[Tensor, " batch"], found: Trace) -> Lines:
    """f_y - f_j, less the trace's slack, for every class j, as linear functions of the logits."""
    like = found.after.center
    eye = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    offsets = like.new_zeros(len(y), like.shape[1])
    if found.slack is not None:
        offsets = (offsets - found.slack[:, None]).scatter(1, y[:, None], 0.0)
    return Lines(eye[y][:, None] - eye, offsets)


def interval_margins(found: Trace, y: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
    r"""Lower bounds of f_y - f_j over the region, by intervals; zero at j = y.

    The last affine layers are merged with the difference: c and r are the centre and radius of their input.

    .. math:: f_y - f_j \ge a c + b - |a|\, r, \qquad a = w_y - w_j, \; b = b_y - b_j

    Cost: one product with the last layer.
    """
    rows = margin_rows(y, found)
    with torch.autocast(rows.slopes.device.type, enabled=False):
        region = found.after
        for step in reversed(found.steps):
            ask()
            if not isinstance(step.module, (*AFFINE, *DIAGONAL)):
                break
            rows, region = back(step.module, step, rows), step.before
        return least(rows, region)


def crown_margins(found: Trace, y: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
    r"""Lower bounds of f_y - f_j over the region, by linear bounds back to the image; zero at j = y.

    Between l < 0 < u a ReLU lies under the line through (l, 0) and (u, u), and over alpha z with alpha = 1 where u > -l, else
    0. A positive slope takes the lower line, a negative one the upper; l and u come from interval bounds.
    Over the image, A x + b is minimised by the dual norm: -eps ||A||_2 or -eps ||A||_1, within the pixel box if it was cut.
    Sound up to float rounding. Cost: one backward pass per class (batched), after the two forward passes of the intervals.
    For max-pools, sorted pairs and smooth activations, see `planes`.
    Source: Zhang et al., ICLR 2020 (CROWN-IBP) and NeurIPS 2018 (CROWN).
    """
    rows = margin_rows(y, found)
    return crown_least(found, rows)


def crown_least(found: Trace, rows: Lines) -> Float[Tensor, "batch rows"]:
    """Lower bounds of any linear functions of the logits."""
    with torch.autocast(rows.slopes.device.type, enabled=False):
        return least(chain_back(found.steps, rows), found.steps[0].before) if found.steps else least(rows, found.after)


def least(rows: Lines, region: Region) -> Float[Tensor, "batch rows"]:
    """The exact minimum of each linear function over the region."""
    slopes, center, radius = rows.slopes.flatten(2), region.center.flatten(1), region.radius.flatten(1)
    middle = torch.einsum("brn,bn->br", slopes, center) + rows.offsets
    if region.round:
        length: Tensor = (slopes * radius[:, None]).norm(dim=2)
        return middle - (torch.minimum(length, drop(slopes, center, radius[:, 0], False)) if region.unit else length)
    return middle - torch.einsum("brn,bn->br", slopes.abs(), radius)


def chain_back(steps: list[Step], rows: Lines) -> Lines:
    """Linear bounds in the outputs of a chain, as linear bounds in its inputs.

    Rounding: A' = A W and b' = b + A c are computed, with sums of n terms. For every possible input u, A (W u + c) + b differs
    from A' u + b' by at most gamma_n (|A| (|W| |u| + |c|) + |b|): |A| is multiplied with the step's `size` (which bounds
    |W| |u| + |c|) and `unit` (which is 2 n units of roundoff or more), and accumulated in `errors`. Products that underflow lose at
    most LEAST of each entry of A', times |u|.
    """
    for step in reversed(steps):
        ask()
        moved = branches_back(step, rows) if forked(step.module) else back(step.module, step, rows)
        if rows.errors is not None:
            errors = rows.errors if moved.errors is None else rows.errors + moved.errors
            if step.size is not None:
                charged = torch.einsum("brn,bn->br", rows.slopes.detach().abs().flatten(2), step.size.flatten(1))
                errors = errors + step.unit * (charged + rows.offsets.detach().abs())
                if step.unit:
                    errors = errors + LEAST * (1 + most(step.before).flatten(1).sum(1, keepdim=True))
            moved = moved._replace(errors=errors)
        rows = moved
    return rows


def branches_back(step: Step, rows: Lines) -> Lines:
    """Backwards through branches that are added or concatenated. The rounding of the last sum is relative to the step's `size`."""
    zeros = torch.zeros_like(rows.offsets)
    shares = rows.slopes.split(step.widths, 2) if step.widths else [rows.slopes] * len(step.branches)
    errors = None if rows.errors is None else zeros
    parts = [chain_back(branch, Lines(share, zeros, errors)) for branch, share in zip(step.branches, shares, strict=True)]
    slopes = torch.stack([part.slopes for part in parts]).sum(0)
    offsets = rows.offsets + torch.stack([part.offsets for part in parts]).sum(0)
    if errors is not None:  # a sum of this many terms, each at most this large
        most = (step.before.center.abs() + step.before.radius).flatten(1)
        for part in parts:
            ends = torch.einsum("brn,bn->br", part.slopes.detach().abs().flatten(2), most) + part.offsets.detach().abs()
            errors = errors + (part.errors if part.errors is not None else 0) + 2.0**-48 * len(parts) * ends
    return Lines(slopes, offsets, errors)


@singledispatch
def back(module: nn.Module, step: Step, rows: Lines) -> Lines:
    """Linear bounds in the outputs of a layer, as linear lower bounds in its inputs."""
    raise NoRule("no linear bounds for this type of layer")


@back.register(nn.Identity)
@back.register(nn.Dropout)
@back.register(nn.Dropout2d)
def _(module: nn.Module, step: Step, rows: Lines) -> Lines:
    return rows


@back.register
def _(module: nn.Flatten, step: Step, rows: Lines) -> Lines:
    return Lines(rows.slopes.reshape(*rows.slopes.shape[:2], *step.before.center.shape[1:]), rows.offsets)


@back.register(Normalize)
@back.register(Scale)
@back.register(LearnableScale)
@back.register(Diagonal)
@back.register(nn.BatchNorm1d)
@back.register(nn.BatchNorm2d)
def _(module: nn.Module, step: Step, rows: Lines) -> Lines:
    scale, shift = diagonal(module, step.before.center)
    moved = (rows.slopes * shift).flatten(2).sum(2)
    return Lines(rows.slopes * scale, rows.offsets + moved)


@back.register
def _(module: nn.Linear, step: Step, rows: Lines) -> Lines:
    offsets = rows.offsets
    if module.bias is not None:
        offsets = offsets + (rows.slopes * wide(module.bias)).flatten(2).sum(2)
    return Lines(rows.slopes @ wide(module.weight), offsets)


@back.register(nn.Conv1d)
@back.register(nn.Conv2d)
def _(module: nn.Conv1d | nn.Conv2d, step: Step, rows: Lines) -> Lines:
    offsets, sides = rows.offsets, step.before.center.shape[2:]
    if module.bias is not None:
        offsets = offsets + (rows.slopes.flatten(3).sum(3) * wide(module.bias)).sum(2)
    pads = list(module._reversed_padding_repeated_twice)  # last dimension first, (before, after) each
    padded = [side + pads[-2 * d - 2] + pads[-2 * d - 1] for d, side in enumerate(sides)]
    spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    outs = rows.slopes.shape[3:]
    left = [p - (o - 1) * s - span for p, o, s, span in zip(padded, outs, module.stride, spans, strict=True)]
    transpose: Callable[..., Tensor] = functional.conv_transpose2d if len(sides) == 2 else functional.conv_transpose1d
    full = transpose(rows.slopes.flatten(0, 1), wide(module.weight), None, module.stride, 0, left, module.groups, module.dilation)
    if module.padding_mode == "zeros":
        slopes = functional.pad(full, [-pad for pad in pads])
    else:
        shape = (len(full), module.in_channels, *sides)
        slopes = adjoint(lambda z: functional.pad(z, pads, mode=module.padding_mode), shape, full)
    return Lines(slopes.unflatten(0, rows.slopes.shape[:2]), offsets)


@back.register(nn.ZeroPad2d)
@back.register(nn.PixelUnshuffle)
@back.register(nn.PixelShuffle)
@back.register(SpaceToDepth)
@back.register(PadChannels)
@back.register(FirstFeatures)
@back.register(ScaledAveragePool)
@back.register(nn.AvgPool1d)
@back.register(nn.AdaptiveAvgPool1d)
@back.register(nn.AvgPool2d)
@back.register(nn.AdaptiveAvgPool2d)
def _(module: nn.Module, step: Step, rows: Lines) -> Lines:
    flat = rows.slopes.flatten(0, 1)
    slopes = adjoint(module, (len(flat), *step.before.center.shape[1:]), flat)
    return Lines(slopes.unflatten(0, rows.slopes.shape[:2]), rows.offsets)


def adjoint(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...], values: Tensor) -> Tensor:
    """The transpose of a linear map without parameters, differentiable in `values`."""
    with torch.enable_grad():
        zero = values.new_zeros(shape, requires_grad=True)
        (moved,) = torch.autograd.grad(linear(zero), zero, values, create_graph=values.requires_grad)
    return moved


@back.register(nn.ReLU)
@back.register(nn.LeakyReLU)
@back.register(nn.Tanh)
@back.register(nn.Sigmoid)
@back.register(nn.ELU)
def _(module: nn.Module, step: Step, rows: Lines) -> Lines:
    if step.bend is not None:
        return _through_bend(step.bend(rows.slopes, kink(module)), rows)
    if isinstance(module, nn.ReLU | nn.LeakyReLU):
        lines = lines_of_kink(kink(module), step.before, step.slope)
    else:
        lines = lines_of_smooth(module, step.before)
    slopes, offsets = bent(rows.slopes, lines)
    return Lines(slopes, rows.offsets + offsets)


def _through_bend(found: Bent, rows: Lines) -> Lines:
    offsets = rows.offsets + found.parts.flatten(2).sum(2) - found.balls
    if found.errors is None:
        return Lines(found.slopes, offsets)
    return Lines(found.slopes, offsets, found.errors + 2.0**-50 * (rows.offsets.detach().abs() + offsets.detach().abs()))


def bent(slopes: Float[Tensor, "batch rows *shape"], lines: Planes) -> tuple[Tensor, Tensor]:
    """Slopes and offsets before a function between two lines: the lower line for positive slopes, the upper for negative."""
    rising, falling = slopes.clamp_min(0), slopes.clamp_max(0)
    offsets = (falling * lines.height[:, None]).flatten(2).sum(2)
    if lines.depth is not None:
        offsets = offsets + (rising * lines.depth[:, None]).flatten(2).sum(2)
    return rising * lines.under + falling * lines.over[:, None], offsets


@back.register(MaxMin)
@back.register(GroupSort)
def _(module: nn.Module, step: Step, rows: Lines) -> Lines:
    """max(a, b) = a + relu(b - a) and min(a, b) = b - relu(b - a)."""
    halves, last = isinstance(module, MaxMin), isinstance(module, MaxMin) and module.dim == -1
    regions, lines = (-1, -1) if last else (1, 2)

    def pairs(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        one, other = values.chunk(2, dim) if halves else values.unflatten(dim, (-1, 2)).unbind(dim + 1)
        return one, other

    low, high = pairs(step.before.lower, regions), pairs(step.before.upper, regions)
    most, least_ = pairs(rows.slopes, lines)
    slopes, offsets = bent(most - least_, lines_of_gap(low[1] - high[0], high[1] - low[0]))
    ends = [most - slopes, least_ + slopes]
    joined = torch.cat(ends, lines) if halves else torch.stack(ends, 3).flatten(2, 3)
    return Lines(joined, rows.offsets + offsets)


@back.register
def _(module: Exchange, step: Step, rows: Lines) -> Lines:
    """As for a sorted pair, for the pairs of channels that the layer names."""
    low, high, first, second = step.before.lower, step.before.upper, module.first, module.second
    most, least_ = rows.slopes[:, :, first], rows.slopes[:, :, second]
    gap = lines_of_gap(low[:, second] - high[:, first], high[:, second] - low[:, first])
    slopes, offsets = bent(most - least_, gap)
    moved = rows.slopes.index_copy(2, first, most - slopes).index_copy(2, second, least_ + slopes)
    return Lines(moved, rows.offsets + offsets)


@back.register
def _(module: nn.MaxPool2d, step: Step, rows: Lines) -> Lines:
    lines = lines_of_windows(module, step.before)
    rising, falling = rows.slopes.clamp_min(0).flatten(2), rows.slopes.clamp_max(0).flatten(2)
    offsets = rows.offsets + (falling * lines.height.flatten(1)[:, None]).sum(2)
    pixels = step.before.center[0].numel()
    slopes = falling.new_zeros(*falling.shape[:2], pixels)
    for values, where in ((rising, lines.lowest), (falling * lines.over.flatten(1)[:, None], lines.highest)):
        slopes = slopes.scatter_add(2, where.flatten(1)[:, None].expand_as(values), values)
    return Lines(slopes.unflatten(2, step.before.center.shape[1:]), offsets)
