"""Context managers that switch a model's mode and restore it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause

DROPOUT = (nn.modules.dropout._DropoutNd,)
"""Layers that draw at random."""
BATCH_BOUND = (nn.modules.batchnorm._BatchNorm, *DROPOUT, parametrizations._SpectralNorm)
"""Layers that mix the images of a batch, keep running statistics (or power iterates), or draw at random."""


@contextmanager
def evaluating(model: nn.Module, device: str | None = None) -> Iterator[None]:
    """In eval mode, on this device where one is given; then every submodule in its own mode and all where it was.

    Raises UserError where the model cannot be switched to eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    home = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(1)).device
    try:
        try:
            model.eval()
        except Exception as error:  # a foreign model's eval() raises whatever it likes
            raise UserError(f"the model cannot be switched to eval mode: {cause(error)}") from None
        if device is not None:
            model.to(device)
        yield
    finally:
        if device is not None:
            model.to(home)
        for module, training in modes:
            module.training = training


@contextmanager
def per_image(model: nn.Module) -> Iterator[None]:
    """BatchNorm at its running statistics and dropout off, so that each image has an answer of its own; then as before.

    Only those layers are switched (spectral normalisation does not iterate either): no statistics move, and layers that work
    ahead in eval mode do not start to.
    """
    with _switched(model, BATCH_BOUND):
        yield


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off and nothing else: BatchNorm in train mode takes the images for training images. Then as before."""
    with _switched(model, DROPOUT):
        yield


@contextmanager
def on_its_own(model: nn.Module) -> Iterator[None]:
    """Dropout off, and BatchNorm in train mode normalises by the batch it is given without keeping its statistics; then as before.

    Spectral normalisation does not iterate either.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    tracking = [
        module for module in model.modules() if isinstance(module, kinds) and module.training and module.track_running_stats
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        with _switched(model, (*DROPOUT, parametrizations._SpectralNorm)):
            yield
    finally:
        for module in tracking:
            module.track_running_stats = True


@contextmanager
def on_first(model: nn.Module, count: int) -> Iterator[None]:
    """Dropout off, and BatchNorm normalises all images by the mean and variance of the first `count`, with their gradients.

    Running statistics stay as they are; spectral normalisation does not iterate either. Without BatchNorm it is `per_image`.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    changed = [module for module in model.modules() if isinstance(module, kinds) and module.training]
    for module in changed:
        module.forward = partial(_normalised_by_first, module, count)  # type: ignore[method-assign]
    try:
        with _switched(model, (*DROPOUT, parametrizations._SpectralNorm)):
            yield
    finally:
        for module in changed:
            del module.forward


def _normalised_by_first(module: nn.modules.batchnorm._BatchNorm, count: int, x: Tensor) -> Tensor:
    """BatchNorm of all rows by the statistics of the first ones."""
    axes = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x[:count], axes, correction=0, keepdim=True)
    y = (x - mean) * (variance + module.eps).rsqrt()
    if module.weight is None:
        return y
    shape = (1, -1, *[1] * (x.dim() - 2))
    return y * module.weight.view(shape) + module.bias.view(shape)


@contextmanager
def _switched(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[None]:
    switched = [module for module in model.modules() if isinstance(module, kinds) and module.training]
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True


def advice(module: nn.Module) -> str:
    """What to do about a layer in training mode: the model around it may well be in eval mode."""
    if type(module).train is not nn.Module.train:
        return f"the train() of {type(module).__name__} keeps it there"
    return "call eval() of it, or of the whole model"
