"""Folding of neighbouring affine layers: a normalisation into the kernel before it, a sum of kernels into one kernel."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.lipschitz.bounds import SLACK, TINY, Bound, rule, upwards, weights
from robustbench_rkhs.lipschitz.convolution import pair
from robustbench_rkhs.lipschitz.euclidean import length
from robustbench_rkhs.lipschitz.rounding import constants, fan


class FoldedConv2d(nn.Conv2d):
    """A convolution made of several layers; `sizes`: the sizes of its constants before they were summed."""

    sizes: Tensor


class FoldedLinear(nn.Linear):
    """A linear layer made of several; `sizes` as for FoldedConv2d."""

    sizes: Tensor


@rule.register(FoldedConv2d)
@rule.register(FoldedLinear)
def _(module: FoldedConv2d | FoldedLinear, shape: tuple[int, ...]) -> Bound:
    """The bound of the kernel, with an allowance for the rounding of its entries."""
    found = rule.dispatch(nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d)(module, shape)
    return found._replace(value=upwards(found.value, SLACK) if found.value else 0.0)


@constants.register(FoldedConv2d)
@constants.register(FoldedLinear)
def _(module: FoldedConv2d | FoldedLinear, shape: tuple[int, ...]) -> float:
    places = module(torch.zeros(1, *shape, dtype=torch.float64)).numel() / len(module.sizes)
    return length(module.sizes) * math.sqrt(places) * (1 + SLACK)


def _made(kind: Any, old: nn.Module, weight: Tensor, bias: Tensor, sizes: Tensor) -> nn.Module:
    """A layer with the options of `old` and other weights."""
    new: nn.Module = kind.__new__(kind)
    new.__dict__.update(old.__dict__)
    values = {"weight": nn.Parameter(weight, requires_grad=False), "bias": nn.Parameter(bias, requires_grad=False)}
    new.__dict__.update(_parameters=values, _buffers={"sizes": sizes}, _modules={})
    return new


def folded(layer: nn.Module, after: nn.Module, outputs: tuple[int, ...]) -> nn.Module | None:
    r"""A convolution or linear layer and the diagonal layer after it as one layer; None for any other pair.

    .. math:: W'_o = s_o W_o, \quad b'_o = s_o (b_o - \mu_o) + \beta_o, \qquad s_o = \gamma_o / \sqrt{\sigma_o^2 + \epsilon}

    In float64: each entry of W' has a relative error of a few units, which the slack of their rule covers; `sizes` records the
    terms that cancel in b'. `outputs`: the shape between the two.
    """
    found = diagonal(after, outputs[0] if outputs else 0)
    if found is None or not isinstance(layer, nn.Conv2d | nn.Linear) or len(outputs) != (1 if isinstance(layer, nn.Linear) else 3):
        return None
    scale, mean, shift = found
    weight = weights(layer.weight, "weight")
    bias = torch.zeros(len(weight), dtype=torch.float64) if layer.bias is None else weights(layer.bias, "bias")
    sizes = getattr(layer, "sizes", bias.abs())
    if len(scale) != len(weight):
        return None
    factors = scale.view(-1, *[1] * (weight.dim() - 1))
    new = weight * factors
    if not new.isfinite().all() or ((new.abs() < TINY) & (weight != 0) & (factors != 0)).any():
        return None  # the product overflows float64; the bound of two separate layers does not
    kind = FoldedLinear if isinstance(layer, nn.Linear) else FoldedConv2d
    return _made(kind, layer, new, (bias - mean) * scale + shift, (sizes + mean.abs()) * scale.abs() + shift.abs())


def diagonal(layer: nn.Module, channels: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """(scale, mean, shift) of a layer that computes scale (x - mean) + shift in each channel; None for others."""
    zeros, ones = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    value = getattr(layer, "value", None)
    if type(layer).__name__ == "Scale" and isinstance(value, float):
        return ones * value, zeros, zeros
    if not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) or layer.training:
        return None
    if layer.running_mean is None or layer.running_var is None:
        return None
    variance = weights(layer.running_var, "running variance") + layer.eps
    if not (variance > 0).all():
        return None  # its rule reports the problem
    scale, shift = variance.rsqrt(), zeros
    if layer.affine:
        scale, shift = scale * weights(layer.weight, "weight"), weights(layer.bias, "bias")
    return scale, weights(layer.running_mean, "running mean"), shift


def added(branches: Sequence[Sequence[nn.Module]], shape: tuple[int, ...]) -> nn.Module | None:
    r"""A sum of centred convolutions and identities, or of linear layers and identities, as one layer; None for others.

    .. math:: x + \sum_i W_i * x = \Big(\delta + \sum_i W_i\Big) * x

    Kernels of different odd sizes are aligned at their centre. Each entry of the sum errs by a few units of the sum of absolute
    values: None too if so much cancels that this is not small relative to the norm, which is at least any entry at the centre.
    """
    if any(len(branch) > 1 for branch in branches):
        return None
    layers = [branch[0] if branch else None for branch in branches]
    real = [one for one in layers if isinstance(one, nn.Conv2d | nn.Linear)]
    if not real or len(real) + sum(one is None for one in layers) != len(layers):
        return None
    if all(isinstance(one, nn.Linear) for one in real):
        kernels = [weights(one.weight, "weight")[..., None, None] for one in real]
    elif all(isinstance(one, nn.Conv2d) and _centred(one) for one in real):
        kernels = [_dense(one) for one in real if isinstance(one, nn.Conv2d)]
    else:
        return None
    if len({(k.shape[:2], *_options(one)) for k, one in zip(kernels, real, strict=True)}) > 1:
        return None
    first, identities = max(real, key=lambda one: one.weight[0].numel()), len(layers) - len(real)
    outputs, inputs = kernels[0].shape[:2]
    if identities and (outputs != inputs or (isinstance(first, nn.Conv2d) and pair(first.stride) != (1, 1))):
        return None
    height, width = (max(k.shape[side] for k in kernels) for side in (2, 3))
    if isinstance(first, nn.Conv2d) and first.padding_mode == "circular" and (height > shape[1] or width > shape[2]):
        return None  # a pixel would be read twice
    total = torch.zeros(outputs, inputs, height, width, dtype=torch.float64)
    absolute = torch.zeros_like(total)
    for kernel in [*kernels, *[torch.eye(outputs, dtype=torch.float64)[..., None, None]] * identities]:
        top, left = (height - kernel.shape[2]) // 2, (width - kernel.shape[3]) // 2
        here = (..., slice(top, top + kernel.shape[2]), slice(left, left + kernel.shape[3]))
        total[here] += kernel
        absolute[here] += kernel.abs()
    bias, sizes = torch.zeros(2, outputs, dtype=torch.float64)
    for one in real:
        if one.bias is not None:
            values = weights(one.bias, "bias")
            bias, sizes = bias + values, sizes + getattr(one, "sizes", values.abs())
    if isinstance(first, nn.Linear):
        merged = _made(FoldedLinear, first, total[..., 0, 0], bias, sizes)
    else:
        merged = _made(FoldedConv2d, first, total, bias, sizes)
        merged.__dict__.update(
            in_channels=inputs,
            groups=1,
            kernel_size=(height, width),
            padding=(height // 2, width // 2),
            _reversed_padding_repeated_twice=[width // 2, width // 2, height // 2, height // 2],
        )
    return merged if _steady(merged, total, absolute) else None


def _steady(merged: nn.Module, total: Tensor, absolute: Tensor) -> bool:
    """Whether the rounding of the entries is below a quarter of the assumed error of products with the layer."""
    rows, columns = fan(merged, 0, 0)
    size = math.sqrt(absolute.sum((1, 2, 3)).max().item() * absolute.sum((0, 2, 3)).max().item())
    centre = total[:, :, total.shape[2] // 2, total.shape[3] // 2].abs().max().item()
    repeats = 9 if isinstance(merged, nn.Conv2d) and merged.padding_mode == "circular" else 1
    return bool(8 * repeats * size <= (max(rows, columns) + 16) * (rows * columns) ** 0.25 * centre)


def _centred(conv: nn.Conv2d) -> bool:
    """Whether the kernel is centred: odd sizes, padded by half."""
    kernel = pair(tuple(conv.weight.shape[2:]))
    half = [k // 2 for k in kernel]
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0 or pair(conv.dilation) != (1, 1):
        return False
    if conv.padding_mode == "circular":
        return list(conv._reversed_padding_repeated_twice) == [half[1], half[1], half[0], half[0]]
    if conv.padding_mode != "zeros" or conv.padding == "valid":
        return False
    return isinstance(conv.padding, str) or list(pair(conv.padding)) == half


def _dense(conv: nn.Conv2d) -> Tensor:
    """The kernel without groups, with zeros between them."""
    weight, groups = weights(conv.weight, "weight"), conv.groups
    if groups == 1:
        return weight
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    whole = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole


def _options(layer: nn.Module) -> tuple[Any, ...]:
    if isinstance(layer, nn.Conv2d):
        return pair(layer.stride), "circular" if layer.padding_mode == "circular" else "zeros"
    return ()
