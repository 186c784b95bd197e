"""Lowering: layers as plain operations (linear maps, convolutions, sums, activations) with weights computed once."""

from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor, nn


@singledispatch
def lowered(layer: nn.Module) -> nn.Module:
    """A layer as plain operations; the layer itself where it is plain already.

    Evaluation runs this form, relaxations bound it and certificate files store it, so none of them needs to know our layers.
    A layer registers its form in its own file by `@lowered.register`. Weights are computed in float64 and rounded to the
    layer's precision, as in its forward pass; they are differentiable in its parameters.
    """
    return layer


def plain(layer: nn.Module) -> nn.Module:
    """`lowered(layer)`, or the layer itself where it runs other code than the type the form was written for."""
    return lowered(layer) if lowers(layer) else layer


def lowers(layer: nn.Module) -> bool:
    """Whether the layer has a form in plain operations and runs the code of the type that registered it, without hooks."""
    kind = next((kind for kind in type(layer).__mro__ if kind in lowered.registry and kind is not object), None)
    if kind is None or "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    return type(layer).forward is kind.forward  # type: ignore[attr-defined]


def chain(*parts: nn.Module) -> nn.Module:
    """The parts in sequence."""
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def linear(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> nn.Linear:
    """nn.Linear with this weight and bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    hold(layer, weight=weight, bias=bias)
    return layer


def hold(layer: nn.Module, **values: Tensor | None) -> None:
    """Set a layer's tensors: constants as parameters without gradient, tensors that are differentiated as buffers."""
    for name, value in values.items():
        layer._parameters.pop(name, None)
        if value is None:
            layer.register_parameter(name, None)
        elif torch.is_grad_enabled() and value.requires_grad:
            layer.register_buffer(name, value)
        else:
            layer.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
