"""What raw arrays must satisfy, and how they become tensors."""

import numpy as np
import torch
from torch import Tensor

from robustbench_rkhs.data.splits import Task
from robustbench_rkhs.nodes.node import UserError


def check_arrays(
    name: str, task: Task, box: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> None:
    """Raises UserError, naming data set and part, at the first thing that is wrong."""
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        where = f"data set {name!r}, {part}"
        if len(x) == 0:
            raise UserError(f"{where}: no images")
        if y.ndim != (2 if task == "regression" else 1) or len(x) != len(y):
            raise UserError(f"{where}: expected one label an image, found images {x.shape} and labels {y.shape}")
        if x.ndim < 2 or x.ndim > 4:
            raise UserError(f"{where}: expected images of 1 to 3 dimensions, found shape {x.shape[1:]}")
        if task == "regression":
            if not np.issubdtype(y.dtype, np.floating) or not np.isfinite(y).all():
                raise UserError(f"{where}: expected finite float labels, found {y.dtype}")
        elif not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise UserError(f"{where}: expected integer labels from 0, found {y.dtype} from {y.min()}")
        if task == "ranking" and set(np.unique(y)) != {0, 1}:
            raise UserError(f"{where}: expected both labels 0 and 1, found {np.unique(y)[:5].tolist()}")
        _check_images(where, x, box)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(f"data set {name!r}: train images {x_train.shape[1:]} and test images {x_test.shape[1:]} differ")
    if task == "regression" and y_train.shape[1:] != y_test.shape[1:]:
        raise UserError(f"data set {name!r}: train labels {y_train.shape[1:]} and test labels {y_test.shape[1:]} differ")
    if task != "regression" and y_test.max() > y_train.max():
        raise UserError(f"data set {name!r}: test label {y_test.max()} is out of range, train labels end at {y_train.max()}")


def _check_images(where: str, x: np.ndarray, box: str) -> None:
    if np.issubdtype(x.dtype, np.floating):
        if not np.isfinite(x).all():
            bad = int((~np.isfinite(x.reshape(len(x), -1)).all(1)).argmax())
            raise UserError(f"{where}: image {bad} holds NaN or infinity")
        if box == "unit" and (x.min() < 0 or x.max() > 1):
            raise UserError(f"{where}: expected float images in [0, 1], found {x.min():.4g} to {x.max():.4g}")
    elif x.dtype != np.uint8:
        raise UserError(f"{where}: expected uint8 images or floats in [0, 1], found {x.dtype}")


def as_images(x: np.ndarray, box: str) -> Tensor:
    """float32 inputs; images in [0, 1] get their channels first, before they grow to floats."""
    images = torch.from_numpy(np.ascontiguousarray(x))
    if box == "unit" and images.dim() == 3:
        images = images[:, None]
    elif images.dim() == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()
