"""Checks of raw arrays, and their conversion to tensors."""

import numpy as np
import torch
from torch import Tensor

from robustbench_rkhs.data.task import Task
from robustbench_rkhs.nodes.node import UserError

MOST_CLASSES = 100_000
"""Labels from here on are no class ids: they would need as many logits."""


def check_arrays(
    name: str, task: Task, box: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> None:
    """Raises UserError, naming data set and part, at the first problem."""
    check_part(f"data set {name!r}, train", x_train, y_train, task, box)
    check_part(f"data set {name!r}, test", x_test, y_test, task, box)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(f"data set {name!r}: train images {x_train.shape[1:]} and test images {x_test.shape[1:]} differ")
    if task == "regression" and y_train.shape[1:] != y_test.shape[1:]:
        raise UserError(f"data set {name!r}: train labels {y_train.shape[1:]} and test labels {y_test.shape[1:]} differ")
    if task != "regression" and y_test.max() > y_train.max():
        raise UserError(f"data set {name!r}: test label {y_test.max()} is out of range, train labels end at {y_train.max()}")


def check_part(where: str, x: np.ndarray, y: np.ndarray, task: Task = "classification", box: str = "unit") -> None:
    """Images and labels of one part. Raises UserError that begins with `where`."""
    if x.ndim == 0 or len(x) == 0:
        raise UserError(f"{where}: no images")
    check_labels(where, x.shape, y, task)
    if x.ndim < 2 or x.ndim > 4:
        raise UserError(f"{where}: expected images of 1 to 3 dimensions, found shape {x.shape[1:]}")
    check_images(where, x, box)


def check_labels(where: str, images: tuple[int, ...], y: np.ndarray, task: Task = "classification") -> None:
    """One integer class id per image (of a regression: floats). Raises UserError that begins with `where`."""
    if y.ndim != (2 if task == "regression" else 1) or images[0] != len(y):
        found = f"found images {images} and labels {y.shape}"
        raise UserError(f"{where}: expected one label per image, {found}{_remedy(images, y)}")
    if task == "regression":
        if not np.issubdtype(y.dtype, np.floating) or not np.isfinite(y).all():
            raise UserError(f"{where}: expected finite float labels, found {y.dtype}")
        return
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{where}: expected integer labels from 0 (class ids), found {y.dtype}")
    if y.min() < 0:
        raise UserError(f"{where}: expected integer labels from 0, found {y.dtype} from {y.min()}")
    if y.max() >= MOST_CLASSES:
        raise UserError(f"{where}: expected class ids below {MOST_CLASSES:,}, found a label {y.max()}")
    if task == "ranking" and set(np.unique(y)) != {0, 1}:
        raise UserError(f"{where}: expected both labels 0 and 1, found {np.unique(y)[:5].tolist()}")


def check_classes(where: str, y: Tensor, classes: int) -> None:
    """Raises UserError, which begins with `where`, for labels beyond the classes of a model."""
    low, high = int(y.min()), int(y.max())
    if high >= classes:
        hint = "; subtract 1?" if (low, high) == (1, classes) else ""
        known = f"labels 0 to {classes - 1} (the model has {classes} classes)"
        raise UserError(f"{where}expected {known}, found {low} to {high}{hint}")


def _remedy(images: tuple[int, ...], y: np.ndarray) -> str:
    """A hint for labels of the wrong shape, if there is one."""
    if y.ndim == 0:
        return ": of one image, pass images[None] and [label]"
    if y.ndim == 2 and len(y) == images[0]:
        return ": pass labels.squeeze(1)" if y.shape[1] == 1 else ", one-hot perhaps: pass labels.argmax(1)"
    return ""


def check_images(where: str, x: np.ndarray, box: str = "unit") -> None:
    """Checks images: uint8, or finite floats, in [0, 1] for box `unit`. Raises UserError that begins with `where`."""
    if np.issubdtype(x.dtype, np.floating):
        if not np.isfinite(x).all():
            bad = int((~np.isfinite(x.reshape(len(x), -1)).all(1)).argmax())
            raise UserError(f"{where}: image {bad} holds NaN or infinity, expected finite pixels")
        if box == "unit" and (x.min() < 0 or x.max() > 1):
            hint = " (divide them by 255)" if 1 < x.max() <= 255 and x.min() >= 0 else ""
            hint = " (normalised, perhaps: undo that, and let the model do it)" if x.min() < 0 else hint
            raise UserError(f"{where}: expected float images in [0, 1], found {x.min():.4g} to {x.max():.4g}{hint}")
    elif x.dtype != np.uint8:
        raise UserError(f"{where}: expected uint8 images or floats in [0, 1], found {x.dtype}")
    elif box == "unit" and x.max() == 1:
        raise UserError(
            f"{where}: expected uint8 images from 0 to 255, which are divided by 255; found only 0 and 1: store them as float32"
        )


def as_images(x: np.ndarray, box: str) -> Tensor:
    """float32 inputs; images in [0, 1] get their channels first, before the conversion to floats."""
    images = channels_first(torch.from_numpy(np.ascontiguousarray(x)), box)
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def channels_first(images: Tensor, box: str) -> Tensor:
    """Grey images get a channel, images with their channels last get them first."""
    if box == "unit" and images.dim() == 3:
        return images[:, None]
    if images.dim() == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    return images
