"""Running a model beside its training without touching what the training keeps."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

BATCH_BOUND = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
"""Layers that mix the images of a batch, keep running statistics, or draw at random."""


@contextmanager
def per_image(model: nn.Module) -> Iterator[None]:
    """BatchNorm at its running statistics and dropout off, so that each image has an answer of its own; then as before.

    Only those layers are switched: no statistics move, and layers that work ahead in eval mode do not start to.
    """
    switched = [module for module in model.modules() if isinstance(module, BATCH_BOUND) and module.training]
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True
