"""Export: each layer as plain float64 operations of the verifier; composite layers by their `lowered` form."""

from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustbench_rkhs.bounds import Step
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
)
from robustbench_rkhs.layers.lowered import plain
from robustbench_rkhs.layers.sandwich import Sandwiched
from robustbench_rkhs.nodes.node import UserError

Shape = tuple[int, ...]


class Plain(NamedTuple):
    """One plain operation, under the verifier's name for it."""

    operation: str
    outputs: Shape
    """Output shape without the batch dimension."""
    settings: dict[str, Any] = {}
    arrays: dict[str, Tensor] = {}
    bound: float | None = None
    """Claimed bound; None stands for the bound of the step."""


@singledispatch
def written(module: nn.Module, step: Step) -> list[Plain]:
    """The layer as plain operations, in float64 with its current weights. Raises UserError if there is no export rule.

    A composite layer is written as its `lowered` form: its bound goes to the first operation, and those that follow are
    activations with bound 1.
    """
    form = plain(module)
    if form is module:
        raise UserError(
            f"no export rule for {step.path or 'the model'} ({type(module).__name__}): its certificate file cannot be written"
        )
    first, *rest = form if type(form) is nn.Sequential else [form]
    after = step._replace(inputs=step.bound.shape)
    activations = [one._replace(bound=1.0) for part in rest for one in written(part, after)]
    return [*written(first, step), *activations]


def biased(bias: Tensor | None, **arrays: Tensor) -> dict[str, Tensor]:
    """The arrays, plus the bias unless it is None."""
    return arrays if bias is None else {**arrays, "bias": bias}


@written.register(nn.Identity)
@written.register(nn.Dropout)
@written.register(nn.Dropout2d)
def _(module: nn.Module, step: Step) -> list[Plain]:
    return []


@written.register(nn.Flatten)
def _(module: nn.Module, step: Step) -> list[Plain]:
    return [Plain("reshape", step.bound.shape)]


@written.register
def _(module: nn.Linear, step: Step) -> list[Plain]:
    return [Plain("linear", step.bound.shape, {}, biased(module.bias, weight=module.weight))]


@written.register
def _(module: Sandwiched, step: Step) -> list[Plain]:
    return [Plain("sandwich", step.bound.shape, {}, {"a": module.a, "b": module.b, "shift": module.shift})]


def _diagonal(shape: Shape, center: Tensor, scale: Tensor, shift: Tensor) -> list[Plain]:
    return [Plain("diagonal", shape, {}, {"center": center.flatten(), "scale": scale.flatten(), "shift": shift.flatten()})]


@written.register
def _(module: Normalize, step: Step) -> list[Plain]:
    return _diagonal(step.bound.shape, module.mean, 1 / module.std, torch.zeros_like(module.mean))


@written.register
def _(module: Scale | LearnableScale, step: Step) -> list[Plain]:
    value = torch.tensor(module.value, dtype=torch.float64) if isinstance(module, Scale) else module.logarithm.exp()
    return _diagonal(step.bound.shape, torch.zeros_like(value), value, torch.zeros_like(value))


@written.register
def _(module: nn.BatchNorm1d | nn.BatchNorm2d, step: Step) -> list[Plain]:
    """BatchNorm with its running statistics."""
    mean, variance = module.running_mean, module.running_var
    assert mean is not None and variance is not None  # its bound is proved, so it has statistics
    scale = (variance + module.eps).rsqrt() * (module.weight if module.affine else 1)
    return _diagonal(step.bound.shape, mean, scale, module.bias if module.affine else torch.zeros_like(mean))


_PLAIN: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.SELU: "selu",
    nn.Softsign: "softsign",
    nn.Hardswish: "hardswish",
}
for _kind, _name in _PLAIN.items():
    written.register(_kind, lambda module, step, name=_name: [Plain(name, step.bound.shape)])


@written.register
def _(module: nn.LeakyReLU | nn.ELU | nn.CELU, step: Step) -> list[Plain]:
    if isinstance(module, nn.CELU):
        return [Plain("celu", step.bound.shape, {"alpha": float(module.alpha)})]
    if isinstance(module, nn.ELU):
        return [Plain("elu", step.bound.shape, {"slope": float(module.alpha)})]
    return [Plain("leaky_relu", step.bound.shape, {"slope": float(module.negative_slope)})]


@written.register
def _(module: nn.Hardtanh, step: Step) -> list[Plain]:
    return [Plain("hardtanh", step.bound.shape, {"low": float(module.min_val), "high": float(module.max_val)})]


@written.register
def _(module: nn.Softplus, step: Step) -> list[Plain]:
    """Softplus without the jump at its threshold, which counts as rounding."""
    return [Plain("softplus", step.bound.shape, {"beta": float(module.beta)})]


@written.register
def _(module: nn.PReLU, step: Step) -> list[Plain]:
    return [Plain("prelu", step.bound.shape, {}, {"weight": module.weight})]


@written.register
def _(module: MaxMin, step: Step) -> list[Plain]:
    if module.dim == -1 and len(step.inputs) > 1:
        raise UserError(f"no export rule for {step.path} ({type(module).__name__}): maxmin on the last of several dimensions")
    return [Plain("maxmin", step.bound.shape)]


@written.register
def _(module: GroupSort, step: Step) -> list[Plain]:
    return [Plain("groupsort", step.bound.shape, {"group": module.group})]


@written.register(PadChannels)
@written.register(FirstFeatures)
def _(module: nn.Module, step: Step) -> list[Plain]:
    return [Plain("fit", step.bound.shape)]


@written.register
def _(module: Residual, step: Step) -> list[Plain]:
    """The sum; the chain writes the branches."""
    return [Plain("sum", step.bound.shape)]


@written.register
def _(module: Concatenate, step: Step) -> list[Plain]:
    return [Plain("concatenate", step.bound.shape)]
