"""Layers that divide by the standard deviation of the image, as layers with rules."""

import math
from typing import Any

from torch import nn

from robustbench_rkhs.bounds.constants import scaled, shifted
from robustbench_rkhs.layers.standardised import Standardised
from robustbench_rkhs.lipschitz.bounds import Uncertifiable
from robustbench_rkhs.lipschitz.guard import foreign, intact, parts

NORMALISING = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""Layers that divide by the standard deviation of the image."""


def to_be_traced(model: nn.Module) -> bool:
    """Whether a model must be traced to be understood: it has code of its own, or layers that become several."""
    return any(foreign(module) or type(module) in NORMALISING for _, module in parts(model))


def groups_of(module: Any, before: tuple[int, ...]) -> int:
    """The groups of values that a layer divides by their standard deviations. Raises Uncertifiable; reads no numbers."""
    intact(module, type(module))
    if not module.eps > 0:
        raise Uncertifiable(f"it divides by a standard deviation that may be zero, as eps is {module.eps}")
    if isinstance(module, nn.LayerNorm):
        return _last(before, module.normalized_shape)
    if isinstance(module, nn.GroupNorm):
        return _of_channels(before, module.num_groups)
    if module.track_running_stats:
        raise Uncertifiable("no rule for an instance norm with running statistics: it is a batch norm then")
    return _of_channels(before, before[0])


def standardised(module: Any, before: tuple[int, ...]) -> list[nn.Module]:
    """LayerNorm, GroupNorm or InstanceNorm: each group standardised, then scaled and shifted."""
    groups = groups_of(module, before)
    if isinstance(module, nn.LayerNorm):
        return layer_norm(before, None, module.normalized_shape, module.weight, module.bias, module.eps)
    return group_norm(before, None, groups, module.weight, module.bias, module.eps)


def layer_norm(
    before: tuple[int, ...], x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> list[nn.Module]:
    """The last dimensions standardised, with one weight for each of their values."""
    return [Standardised(_last(before, normalized_shape), float(eps)), *_affine_after(before, weight, bias)]


def group_norm(
    before: tuple[int, ...], x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> list[nn.Module]:
    """Groups of channels standardised, with one weight for each channel."""
    groups = _of_channels(before, num_groups)
    wide = [one if one is None else one.reshape(-1, *(1,) * (len(before) - 1)) for one in (weight, bias)]
    return [Standardised(groups, float(eps)), *_affine_after(before, *wide)]


def _last(before: tuple[int, ...], normalized_shape: Any) -> int:
    shape = tuple(normalized_shape)
    if not shape or before[len(before) - len(shape) :] != shape:
        raise Uncertifiable(f"expected images that end in {shape}, found {before}")
    return _several(before, math.prod(before) // math.prod(shape))


def _of_channels(before: tuple[int, ...], groups: int) -> int:
    if before[0] % groups:
        raise Uncertifiable(f"expected channels in {groups} groups, found images of {before}")
    return _several(before, groups)


def _several(before: tuple[int, ...], groups: int) -> int:
    if math.prod(before) == groups:
        raise Uncertifiable("each value would be divided by its own standard deviation, which is zero")
    return groups


def _affine_after(before: tuple[int, ...], weight: Any, bias: Any) -> list[nn.Module]:
    return [*([] if weight is None else scaled(weight, before)), *([] if bias is None else shifted(bias, before, 1))]
