"""A split from images and labels that a user passes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_rkhs.data.checks import check_classes, check_images, check_labels, check_part
from robustbench_rkhs.data.splits import Split, split_digest
from robustbench_rkhs.data.stream import Stream, stream_of_array
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause

WHERE = "data set 'arrays', test"
"""Prefix of error messages."""
Bounds = tuple[float, float]
"""The smallest and the largest pixel value."""


def given_images(x: Any, bounds: Bounds = (0.0, 1.0), box: str = "unit") -> Tensor:
    """Images in [0, 1], checked: floats within `bounds` are rescaled, uint8 is divided by 255. A memory map becomes a Stream.

    Takes anything that numpy understands, also tensors that require gradients, float16 and bfloat16. Raises UserError.
    """
    if isinstance(x, Stream):
        return x
    if isinstance(x, np.memmap):
        return stream_of_array(x, WHERE, box, *bounds)
    images = given_tensor(x, "images")
    array = images.numpy()
    if array.ndim == 0 or len(array) == 0:
        raise UserError(f"{WHERE}: no images")
    if images.is_floating_point() and bounds != (0.0, 1.0):
        low, high = float(images.min()), float(images.max())
        if not (bounds[0] <= low and high <= bounds[1]) and np.isfinite(array).all():
            raise UserError(f"{WHERE}: expected images from {bounds[0]:g} to {bounds[1]:g} (bounds), found {low:.4g} to {high:.4g}")
        images = (images - bounds[0]) / (bounds[1] - bounds[0])
        array = images.numpy()
    check_images(WHERE, array, box)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def given_labels(y: Any, images: tuple[int, ...]) -> Tensor:
    """Class ids as int64, checked. Raises UserError."""
    labels = given_tensor(y, "labels")
    check_labels(WHERE, images, labels.numpy())
    return labels.long()


def given_split(x: Tensor, y: Tensor, classes: int, data: str = "arrays") -> Split:
    """The split of these images and labels, for a model with this number of classes. Raises UserError."""
    if not isinstance(x, Stream):
        check_part(WHERE, x.numpy(), y.numpy())
    elif not len(x):
        raise UserError(f"{WHERE}: no images")
    check_classes("", y, classes)
    return Split(data, "test", x, y, torch.arange(len(x)), classes, split_digest(x, y))


def given_tensor(given: Any, what: str) -> Tensor:
    """The tensor on the CPU, detached, in a type that numpy has. Raises UserError for anything but an array of numbers."""
    try:
        if isinstance(given, (list, tuple)) and given and all(isinstance(one, Tensor) for one in given):
            given = torch.stack([one.detach().cpu() for one in given])
        if not isinstance(given, Tensor):
            array = np.asarray(given)
            if array.dtype.kind not in "fiub":
                raise TypeError(f"numpy makes {array.dtype} of it")
            given = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        tensor: Tensor = (given.clone() if given.is_inference() else given).detach().cpu().contiguous()
        if tensor.is_complex() or tensor.layout != torch.strided:
            raise TypeError(f"it is {tensor.dtype} in layout {tensor.layout}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"expected {what} as a tensor or an array of numbers, found {type(given).__name__}: {cause(error)}"
        ) from None
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
