"""Interval bound propagation: bounds on every layer's output for all images in a ball."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustbench_rkhs.layers import (
    Concatenate,
    FirstFeatures,
    GroupSort,
    LearnableScale,
    MaxMin,
    Normalize,
    PadChannels,
    Residual,
    Scale,
    ScaledAveragePool,
    SpaceToDepth,
)
from robustbench_rkhs.layers.traced_maps import Diagonal
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.relaxations.expansion import Exchange, expanded
from robustbench_rkhs.relaxations.planes import Bent
from robustbench_rkhs.relaxations.region import Region, between, wide
from robustbench_rkhs.runtime.clock import ask

SMALLEST = 1e-30
"""Lower limit for arguments of the square root, whose slope at zero is infinite."""


class Step(NamedTuple):
    """A layer of the model and the region of its inputs."""

    path: str
    module: nn.Module
    before: Region
    branches: tuple[list["Step"], ...] = ()
    """The steps of the branches that it adds or concatenates, if any."""
    widths: tuple[int, ...] = ()
    """Channels of each branch, if they are concatenated."""
    size: Tensor | None = None
    """Bound on the sum of absolute values behind each output, if rounding is accounted for."""
    unit: float = 0.0
    """Bound on the rounding relative to `size`."""
    slope: Tensor | None = None
    """Slopes of a ReLU's lower line, from one side (0) to the other (1), (batch, rows or 1, *shape); None: the nearer side."""
    bend: Callable[[Tensor, float], Bent] | None = None
    """Bounds of a ReLU instead of the two lines, from the rows after it and the slope left of zero."""


class Trace(NamedTuple):
    """The model's layers in the order they run, and the region of the outputs."""

    steps: list[Step]
    after: Region
    slack: Tensor | None = None
    """(batch): what is taken off each difference of logits, for what the network as it runs errs by."""


class Walk(NamedTuple):
    """Hooks that a pass through a model calls."""

    tighten: Callable[[nn.Module, list[Step], Region], Region] | None = None
    """A tighter input region of a layer, from the steps before it back to the image."""
    round: Callable[[Step, Region], tuple[Step, Region]] | None = None
    """The output region, widened by float rounding."""


def trace(model: nn.Module, region: Region, path: str = "", walk: Walk = Walk()) -> Trace:  # noqa: B008 (immutable)
    r"""Interval bound propagation: a region that holds the output of every layer, for all inputs in `region`.

    .. math:: z = W u + b: \quad c_z = W c_u + b, \qquad
              r_z = |W|\, r_u \;\text{(box)}, \quad r_z = \sqrt{W^2 r_u^2} \;\text{(ellipsoid, exact row by row)}

    Sound up to float rounding, differentiable in all parameters. Always bounds the model in eval mode (BatchNorm with its running
    statistics, dropout off), whatever its current mode. Computed outside autocast in at least float32.
    Cost: two forward passes. Raises UserError, naming the layer, for a layer without a rule.
    Source: Gowal et al., "On the Effectiveness of Interval Bound Propagation", 2018; dual norms, Zhang et al., NeurIPS 2018.
    """
    with torch.autocast(region.center.device.type, enabled=False):
        return _trace(model, region, path, walk, [])


def _trace(model: nn.Module, region: Region, path: str, walk: Walk, before: list[Step]) -> Trace:
    if type(model) is nn.Sequential:
        steps: list[Step] = []
        for name, child in _children(model):
            ask()
            part = _trace(child, region, f"{path}.{name}" if path else name, walk, before + steps)
            steps += part.steps
            region = part.after
        return Trace(steps, region)
    if forked(model):
        if type(model).forward is not _forked(model).forward or "forward" in vars(model):
            raise UserError(f"no bounds through layer {path or 'model'!r} ({type(model).__name__}): it overrides forward")
        chains = [_trace(branch, region, f"{path}.{name}", walk, before) for name, branch in _children(model)]
        centers, radii = [one.after.center for one in chains], [one.after.radius for one in chains]
        widths = () if isinstance(model, Residual) else tuple(one.shape[1] for one in centers)
        join = torch.cat if widths else _add
        step = Step(path, model, region, tuple(one.steps for one in chains), widths)
        after = Region(join(centers, 1), join(radii, 1))
        if walk.round and not widths:
            step, after = walk.round(step, after)
        return Trace([step], after)
    inner = expanded(model, region.center)
    if inner is not model:
        return _trace(inner, region, path, walk, before)
    try:
        check(model)
        if walk.tighten:
            region = walk.tighten(model, before, region)
        step, after = Step(path, model, region), through(model, region)
        if walk.round:
            step, after = walk.round(step, after)
    except NoRule as refused:
        raise UserError(f"no bounds through layer {path or 'model'!r} ({type(model).__name__}): {refused}") from None
    return Trace([step], after)


def _children(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """All submodules, also those that occur twice."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _forked(module: nn.Module) -> type[nn.Module]:
    """The class of a layer whose branches are added (Residual) or concatenated; nn.Module for other layers."""
    return next((kind for kind in (Residual, Concatenate) if isinstance(module, kind)), nn.Module)


def forked(module: nn.Module) -> bool:
    """Whether a layer adds or concatenates branches of the same image."""
    return _forked(module) is not nn.Module


def _add(tensors: list[Tensor], dim: int) -> Tensor:
    return torch.stack(tensors).sum(0)


class NoRule(UserError):
    """Raised with the reason why a layer has no bounds; the caller adds the layer's name."""


def check(module: nn.Module) -> None:
    """Raises NoRule where the layer does not run the code the rule is for."""
    known = [kind for kind in type(module).__mro__ if kind in through.registry and issubclass(kind, nn.Module)]
    if not known:
        raise NoRule("no rule for this type of layer")
    kind = known[0]
    if type(module).forward is not kind.forward or "forward" in vars(module):
        raise NoRule(f"it overrides forward of {kind.__name__}, which the rule is for")
    if not parametrize.is_parametrized(module) and (module._forward_hooks or module._forward_pre_hooks):
        raise NoRule("it carries hooks")


@singledispatch
def through(module: nn.Module, region: Region) -> Region:
    """The output region of one layer for inputs in `region`."""
    raise NoRule("no rule for this type of layer")


@through.register(nn.Identity)
@through.register(nn.Dropout)
@through.register(nn.Dropout2d)
def _(module: nn.Module, region: Region) -> Region:
    return region


@through.register
def _(module: nn.Flatten, region: Region) -> Region:
    if module.start_dim < 1:
        raise NoRule("it flattens the batch")
    return Region(module(region.center), module(region.radius), region.round)


@through.register(nn.ZeroPad2d)
@through.register(nn.PixelUnshuffle)
@through.register(nn.PixelShuffle)
@through.register(SpaceToDepth)
@through.register(PadChannels)
@through.register(FirstFeatures)
def _(module: nn.Module, region: Region) -> Region:
    """Layers that move, drop or pad values: a radius of zero is a known value."""
    return Region(module(region.center), module(region.radius), region.round)


@through.register(Normalize)
@through.register(Scale)
@through.register(LearnableScale)
@through.register(Diagonal)
@through.register(nn.BatchNorm1d)
@through.register(nn.BatchNorm2d)
def _(module: nn.Module, region: Region) -> Region:
    scale, shift = diagonal(module, region.center)
    return Region(region.center * scale + shift, region.radius * scale.abs(), region.round)


def diagonal(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of a layer that maps each value separately."""
    if isinstance(module, Scale):
        return like.new_tensor(module.value), like.new_zeros(())
    if isinstance(module, Diagonal):
        return module.scale.to(like), module.shift.to(like)
    if isinstance(module, LearnableScale):
        return module.logarithm.exp().to(like), like.new_zeros(())
    if isinstance(module, Normalize):
        return 1 / module.std, -module.mean / module.std
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if module.running_mean is None or module.running_var is None:
        raise NoRule("it has no running statistics")
    scale = (wide(module.running_var) + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * wide(module.weight)
    shift = -wide(module.running_mean) * scale
    if module.bias is not None:
        shift = shift + wide(module.bias)
    shape = (-1, *[1] * (like.dim() - 2))
    return scale.view(shape), shift.view(shape)


@through.register
def _(module: nn.Linear, region: Region) -> Region:
    weight, bias = wide(module.weight), None if module.bias is None else wide(module.bias)
    center = nn.functional.linear(region.center, weight, bias)
    if region.round and region.center.dim() == 2:
        return Region(center, root(nn.functional.linear(region.radius.square(), weight.square())))
    return Region(center, nn.functional.linear(region.radius, weight.abs()))


@through.register(nn.Conv1d)
@through.register(nn.Conv2d)
def _(module: nn.Conv1d | nn.Conv2d, region: Region) -> Region:
    weight, bias = wide(module.weight), None if module.bias is None else wide(module.bias)
    center = module._conv_forward(region.center, weight, bias)
    if region.round and _distinct(module, region.center.shape[2:]):
        return Region(center, root(module._conv_forward(region.radius.square(), weight.square(), None)))
    return Region(center, module._conv_forward(region.radius, weight.abs(), None))


def _distinct(module: nn.Conv1d | nn.Conv2d, sides: Sequence[int]) -> bool:
    """Whether no window of the convolution reads a value twice, so that rows have the norms of the kernel."""
    if module.padding_mode == "zeros":
        return True
    spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return module.padding_mode == "circular" and all(span <= side for span, side in zip(spans, sides, strict=True))


@through.register
def _(module: nn.ReLU, region: Region) -> Region:
    return between(region.lower.relu(), region.upper.relu())


@through.register
def _(module: nn.LeakyReLU, region: Region) -> Region:
    slope = kink(module)
    bend = nn.functional.leaky_relu
    return between(bend(region.lower, slope), bend(region.upper, slope))


def kink(module: nn.Module) -> float:
    """Slope of a ReLU or LeakyReLU left of zero."""
    slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
    if not 0 <= slope <= 1:
        raise NoRule(f"expected a negative slope in [0, 1], found {slope}")
    return slope


@through.register(nn.Tanh)
@through.register(nn.Sigmoid)
@through.register(nn.ELU)
def _(module: nn.Module, region: Region) -> Region:
    if isinstance(module, nn.ELU) and not 0 <= module.alpha <= 1:
        raise NoRule(f"expected alpha in [0, 1], where it is convex, found {module.alpha}")
    bend = copy.copy(module)
    if isinstance(bend, nn.ELU):
        bend.inplace = False
    return between(bend(region.lower), bend(region.upper))


@through.register(MaxMin)
@through.register(GroupSort)
@through.register(Exchange)
def _(module: nn.Module, region: Region) -> Region:
    if isinstance(module, GroupSort) and module.group != 2:
        raise NoRule(f"expected groups of 2, found {module.group}")
    return between(module(region.lower), module(region.upper))


@through.register(ScaledAveragePool)
@through.register(nn.AvgPool1d)
@through.register(nn.AdaptiveAvgPool1d)
@through.register(nn.AvgPool2d)
@through.register(nn.AdaptiveAvgPool2d)
def _(module: nn.Module, region: Region) -> Region:
    if (getattr(module, "divisor_override", None) or 1) < 0:
        raise NoRule("its divisor is negative")
    return Region(module(region.center), module(region.radius))


@through.register
def _(module: nn.MaxPool2d, region: Region) -> Region:
    if module.return_indices:
        raise NoRule("it returns indices")
    return between(module(region.lower), module(region.upper))


def root(squares: Tensor) -> Tensor:
    """Square roots with a finite slope."""
    return squares.clamp_min(SMALLEST).sqrt()
