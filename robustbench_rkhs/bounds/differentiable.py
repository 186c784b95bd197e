"""Differentiable upper bounds on operator norms, for training: Gram iteration, above the true norm at every iteration."""

import math
from functools import singledispatch

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers import LinearNormalized, LinearResidual, LinearResidualConv
from robustbench_rkhs.layers.borders import ends
from robustbench_rkhs.lipschitz.bounds import Uncertifiable, rule
from robustbench_rkhs.lipschitz.convolution import Axis, conv_axes, fitting, image_size, operator_matrix, spectrum_parts
from robustbench_rkhs.lipschitz.guard import branches, leaves, named
from robustbench_rkhs.lipschitz.sequences import FLAT, sequence_axis, sequence_size

Value = tuple[Tensor | float, tuple[int, ...]]
"""(bound, output shape)."""
DENSE = 2**17
"""A zero-padded convolution whose matrix is at most this large is written as that matrix, else on the torus."""


def iterate(matrices: Inexact[Tensor, "*batch rows columns"], iterations: int) -> Float[Tensor, ""]:
    r"""Gram iteration: an upper bound of the largest ||A||_2 of the batch after any number N >= 0 of iterations.

    .. math:: G_0 = A, \quad G_{k+1} = G_k^* G_k, \qquad \lVert A \rVert_2 \le \lVert G_N \rVert_F^{2^{-N}}
              \le r^{2^{-N-1}} \lVert A \rVert_2

    r: rank. Never increasing in N. Every G_k is divided by its Frobenius norm, whose logarithm is accumulated, so that
    nothing overflows; zero for zeros. In the precision of the entries: an upper bound up to their rounding.
    Cost: N matrix products of the smaller side per matrix (one of the larger). Source: Delattre et al., ICML 2023.
    """
    now = matrices.mH if matrices.shape[-1] > matrices.shape[-2] else matrices
    peak = matrices.detach().abs().amax()
    tiny = torch.finfo(peak.dtype).tiny
    now, logarithm = now / peak.clamp_min(tiny), peak.clamp_min(tiny).log()
    for _ in range(iterations):
        size = _frobenius(now).clamp_min(tiny)
        now, logarithm = now / size[..., None, None], 2 * (logarithm + size.log())
        now = now.mH @ now
    logarithm = logarithm + _frobenius(now).clamp_min(tiny).log()
    result: Tensor = (logarithm.amax() / 2**iterations).exp()
    return result


def _frobenius(matrices: Tensor) -> Tensor:
    """The Frobenius norm of each matrix; complex entries count as pairs; the gradient at zero is zero."""
    entries = torch.view_as_real(matrices.resolve_conj()).flatten(-2) if matrices.is_complex() else matrices
    result: Tensor = torch.linalg.vector_norm(entries, dim=(-2, -1))
    return result


def gram_norm(module: nn.Module, shape: tuple[int, ...], iterations: int = 6) -> Float[Tensor, ""]:
    """An upper bound on the layer's Lipschitz constant on images of `shape`, differentiable in its parameters, in their precision
    (float32 for half precision) and on their device.

    nn.Linear, nn.Conv1d, nn.Conv2d (any stride, zero or circular padding, dilation; the largest of the groups) by `iterate`;
    BatchNorm with its running statistics; for a sum of branches, the sum of the products; for any other layer without parameters,
    the constant that its rule proves. Raises Uncertifiable, by name, for other layers with parameters.
    """
    with torch.autocast(_start(module).device.type, enabled=False):
        return _start(module) * _bound(module, tuple(shape), iterations)[0]


def gram_pairs(model: nn.Module, shape: tuple[int, ...], classes: int, iterations: int = 6) -> Float[Tensor, "classes classes"]:
    r"""Lipschitz bounds on the differences of two logits, differentiable in all parameters; zero on the diagonal.

    .. math:: L_{yj} = \lVert w_y - w_j \rVert_2 \prod_k L_k

    L_k: `gram_norm` of the layers before the last one, whose rows are w (nn.Linear, or a layer known to `rows`); sqrt(2) times the
    product of all where the model ends in another layer. Dropout counts as in eval mode, BatchNorm with its running statistics.
    For training only: the certificate proves its own (smaller) numbers. Raises Uncertifiable as `gram_norm` does, and where the
    model does not have `classes` logits.
    """
    with torch.autocast(_start(model).device.type, enabled=False):
        layers = _opened(model)
        last = layers[-1][1] if layers else None
        weight = None if last is None else rows(last)
        value, found = _product(layers if weight is None else layers[:-1], tuple(shape), iterations)
        value = _start(model) * value
        if weight is not None:
            found = _same_features(weight, found)
        if found != (classes,):
            raise Uncertifiable(f"no bound for pairs of classes: expected {classes} logits, found outputs of shape {found}")
        if weight is None:
            return value * math.sqrt(2) * (1 - torch.eye(classes, device=value.device, dtype=value.dtype))
        weight = _precise(weight)
        result: Tensor = value * torch.linalg.vector_norm(weight[:, None] - weight[None], dim=2)
        return result


def _opened(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's layers; for a model compiled by torch.compile, those of the original (for training: nothing is proved)."""
    if type(model) is nn.Sequential and model._compiled_call_impl is not None:
        return [leaf for name, child in model.named_children() for leaf in leaves(child, name)]
    return list(leaves(model))


def _product(layers: list[tuple[str, nn.Module]], shape: tuple[int, ...], iterations: int) -> Value:
    """The product of the layers' bounds, and the output shape."""
    total: Tensor | float = 1.0
    for path, layer in layers:
        try:
            value, shape = _bound(layer, shape, iterations)
        except Uncertifiable as refused:
            raise Uncertifiable(f"{named(path, layer)}: {refused}") from None
        total = total * value
    return total, shape


def _bound(layer: nn.Module, shape: tuple[int, ...], iterations: int) -> Value:
    """For a sum of branches, the sum of their bounds."""
    parts = [_product(list(leaves(branch)), shape, iterations) for branch in branches(layer)]
    if not parts:
        return gram(layer, shape, iterations)
    total: Tensor | float = 0.0
    for value, _ in parts:
        total = total + value
    return total, parts[0][1]


@singledispatch
def gram(module: nn.Module, shape: tuple[int, ...], iterations: int) -> Value:
    """The differentiable bound by type, and the output shape; a layer may register its own in its own file: `@gram.register`."""
    if next(module.parameters(), None) is not None:
        raise Uncertifiable("no differentiable bound for this type of layer with parameters")
    return rule(module, shape)[:2]


@singledispatch
def rows(module: nn.Module) -> Tensor | None:
    """The matrix of a last layer that is a matrix product, differentiable; None for any other layer."""
    return None


@rows.register
def _(module: nn.Linear) -> Tensor:
    return module.weight


@rows.register
def _(module: LinearNormalized) -> Tensor:
    return functional.normalize(module.weight, dim=1)


@gram.register
def _(module: nn.Linear, shape: tuple[int, ...], iterations: int) -> Value:
    found = _same_features(module.weight, shape)
    return iterate(_precise(module.weight), iterations), found


@gram.register
def _(module: nn.Conv2d, shape: tuple[int, ...], iterations: int) -> Value:
    channels, height, width = image_size(shape)
    _same_channels(module, channels, shape)
    axes = fitting(conv_axes(module, (height, width)), shape)
    value = gram_convolution(module.weight, module.groups, axes, iterations)
    return value, (module.out_channels, axes[0].outputs, axes[1].outputs)


@gram.register
def _(module: nn.Conv1d, shape: tuple[int, ...], iterations: int) -> Value:
    channels, size = sequence_size(shape)
    _same_channels(module, channels, shape)
    axis = sequence_axis(module, size)
    axes = fitting((FLAT, axis), shape)
    return gram_convolution(module.weight.unsqueeze(2), module.groups, axes, iterations), (module.out_channels, axis.outputs)


@gram.register
def _(module: LinearResidual, shape: tuple[int, ...], iterations: int) -> Value:
    found = _same_features(module.weight, shape)
    return iterate(_precise(module.weight) + torch.eye(len(module.weight), device=module.weight.device), iterations), found


@gram.register
def _(module: LinearResidualConv, shape: tuple[int, ...], iterations: int) -> Value:
    channels, height, width = image_size(shape)
    outputs, inputs, kernel, _ = module.weight.shape
    if channels != inputs:
        raise Uncertifiable(f"expected {inputs} channels, found an input of shape {shape}")
    row, column = (Axis(size, kernel, 1, 1, *ends(kernel), module.padding_mode == "circular") for size in (height, width))
    identity = torch.zeros_like(module.weight)
    identity[:, :, kernel // 2, kernel // 2] = torch.eye(outputs, device=module.weight.device)
    return gram_convolution(_precise(module.weight + identity), 1, (row, column), iterations), shape


@gram.register(nn.BatchNorm1d)
@gram.register(nn.BatchNorm2d)
def _(module: nn.BatchNorm1d | nn.BatchNorm2d, shape: tuple[int, ...], iterations: int) -> Value:
    """max_c |gamma_c| / sqrt(var_c + eps)."""
    if module.running_var is None:
        raise Uncertifiable("it has no running statistics")
    slopes = (_precise(module.running_var).clone() + module.eps).rsqrt()  # a forward pass may change them before the backward pass
    return (slopes * _precise(module.weight).abs() if module.affine else slopes).amax(), shape


@gram.register(nn.Dropout)
@gram.register(nn.Dropout2d)
def _(module: nn.Module, shape: tuple[int, ...], iterations: int) -> Value:
    return 1.0, shape


def gram_convolution(weight: Tensor, count: int, axes: tuple[Axis, Axis], iterations: int) -> Tensor:
    """The bound of a kernel in `count` groups: by its matrix where that is small, else on the torus."""
    kernel = _precise(weight).unflatten(0, (count, -1))
    groups, outputs, inputs = kernel.shape[:3]
    entries = groups * outputs * inputs * math.prod(axis.size * axis.outputs for axis in axes)
    if entries <= DENSE and not any(axis.circular for axis in axes):
        return iterate(operator_matrix(kernel, axes), iterations)
    cosine, sine, flat, shape, repeats = spectrum_parts(kernel, axes)
    matrices = torch.complex(cosine @ flat, sine @ flat).view(len(cosine), *shape)
    return iterate(matrices, iterations) * math.sqrt(repeats)


def _same_features(weight: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The output shape."""
    if shape[-1:] != (weight.shape[1],):
        raise Uncertifiable(f"expected {weight.shape[1]} features, found an input of shape {shape}")
    return (*shape[:-1], weight.shape[0])


def _same_channels(module: nn.Conv1d | nn.Conv2d, channels: int, shape: tuple[int, ...]) -> None:
    if channels != module.weight.shape[1] * module.groups:
        raise Uncertifiable(f"expected {module.weight.shape[1] * module.groups} channels, found an input of shape {shape}")


def _precise(tensor: Tensor) -> Tensor:
    """Half precision widened to float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _start(module: nn.Module) -> Tensor:
    """The number one, on the device and in the precision of the parameters."""
    first = next((tensor for tensor in [*module.parameters(), *module.buffers()] if tensor.is_floating_point()), torch.ones(()))
    return torch.ones((), device=first.device, dtype=torch.float64 if first.dtype == torch.float64 else torch.float32)
