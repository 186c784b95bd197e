"""Images and labels in any form that a user passes, as one split, after one set of checks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from robustbench_rkhs.data import DataSet, ImageFolder, Split, Stream
from robustbench_rkhs.data.checks import channels_first, check_classes
from robustbench_rkhs.data.given import Bounds, given_images, given_labels
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause

IN_MEMORY = 2**30
"""Largest data set, in bytes, that is read once and kept in memory."""
IMAGES = ("x", "image", "images", "img", "pixel_values", "inputs", "x_test")
LABELS = ("y", "label", "labels", "fine_label", "target", "targets", "y_test")
"""Keys of images and labels in mappings: of a whole data set, or of one item."""


def test_images(data: DataSet, shape: tuple[int, ...] | None, classes: Callable[[Split], int]) -> Split:
    """The test split, for a model with images of this shape, if known.

    For users' own data the class count is that of the model, as the labels need not contain all classes. Raises UserError.
    """
    data = data.for_shape(shape) if isinstance(data, ImageFolder) else data
    found = data.test()
    if not data.own:
        return found
    count = classes(found)
    if found.task == "classification":
        check_classes(f"data set {found.data!r}: ", found.y, count)
    return of_classes(found, data, count)


def of_classes(found: Split, data: DataSet, classes: int) -> Split:
    """The split, for a model with this number of classes. Raises UserError if the class ids of a folder are ambiguous."""
    if found.classes >= classes:
        return found
    if isinstance(data, ImageFolder) and data.counts_by_order:
        raise UserError(
            f"data set {found.data!r} has {found.classes} classes, the model {classes}: which are they? Name the subfolders by "
            f"class id, or list all class names in a file classes.txt"
        )
    return replace(found, classes=classes)


def classifiable(split: Split) -> Split:
    """The split, if it has classes. Raises UserError."""
    if split.task == "regression":
        raise UserError(f"data set {split.data!r} is a regression: attacks and certificates need classes")
    return split


def as_split(data: Any, bounds: Bounds = (0.0, 1.0)) -> Split | tuple[Tensor, Tensor]:
    """A Split unchanged; anything else as images and labels, before any query of the model. Raises UserError."""
    if isinstance(data, Split):
        return classifiable(data)
    if isinstance(data, DataLoader):
        with _gathering():
            x, y = _of_loader(data)
    elif isinstance(data, Mapping):
        x, y = _pair(data)
    elif _batches(data):
        x, y = _gathered(data, batched=True)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = data
    elif isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__") and not _images(data)):
        with _gathering():
            x, y = _of_dataset(data)
    elif _images(data):
        raise UserError("expected images and labels as (images, labels), found images alone")
    else:
        what = "nothing" if data is None else type(data).__name__
        raise UserError(f"expected data as (images, labels), a Dataset, a DataLoader, or the name of a data set, found {what}")
    images = given_images(x, bounds)
    return images, given_labels(y, tuple(images.shape))


def layouts(x: Tensor) -> list[Tensor]:
    """The layouts of the images to try on a model: channels first, then unchanged."""
    if isinstance(x, Stream):
        return [x]
    first = channels_first(x, "unit")
    return [first] if first.shape == x.shape else [first, x]


def _images(data: Any) -> bool:
    return isinstance(data, (Tensor, np.ndarray)) or (isinstance(data, (list, tuple)) and not _pairs(data))


def _pairs(data: Any) -> bool:
    return bool(len(data)) and isinstance(data[0], (tuple, dict))


def _batches(data: Any) -> bool:
    """Whether this is a list of a DataLoader's batches: pairs of equally many images and labels."""
    return isinstance(data, (list, tuple)) and all(
        isinstance(one, (list, tuple))
        and len(one) == 2
        and all(isinstance(part, Tensor) for part in one)
        and one[1].dim() == 1
        and one[0].dim() > 2
        and len(one[0]) == len(one[1])
        for one in data
    )


@contextmanager
def _gathering() -> Iterator[None]:
    """Any exception of a user's data set becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the data cannot be gathered: {cause(error)}") from None


def _of_loader(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """The images and labels of a DataLoader, in the order of its data set if it shuffles; large ones block by block."""
    dataset = loader.dataset
    if not isinstance(dataset, IterableDataset):
        shuffles = isinstance(loader.sampler, RandomSampler) and loader.sampler.num_samples == len(loader.sampler.data_source)
        if _bytes(dataset) > IN_MEMORY and (shuffles or len(loader.sampler) == len(dataset)):  # type: ignore[arg-type]
            return _of_dataset(dataset)
        if shuffles and loader.batch_size is not None:
            loader = DataLoader(dataset, loader.batch_size, collate_fn=loader.collate_fn)
    return _gathered(loader, batched=loader.batch_sampler is not None)


def _of_dataset(dataset: Any) -> tuple[Any, Any]:
    """The images and labels of a data set's items; images block by block if there are many."""
    if not isinstance(dataset, IterableDataset) and _bytes(dataset) > IN_MEMORY:
        return _stream(dataset), _labels(dataset)
    items = dataset if isinstance(dataset, IterableDataset) else (dataset[place] for place in range(len(dataset)))
    return _gathered(items, batched=False)


def _stream(dataset: Any) -> Stream:
    def read(positions: np.ndarray) -> Tensor:
        pixels = torch.stack([_pixels(_pair(dataset[int(place)])[0]) for place in positions])
        return given_images(channels_first(pixels, "unit"))

    first = np.arange(1)
    if not torch.equal(read(first), read(first)):
        raise UserError("the data set returns different images for the same index: leave out its random transforms")
    return Stream.of(read, len(dataset))


def _labels(dataset: Any) -> Any:
    """Its `targets` or `labels`, if there is one per item; else the labels of its items."""
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None and len(found) == len(dataset) and getattr(dataset, "target_transform", None) is None:
            return found
    return [int(_pair(dataset[place])[1]) for place in range(len(dataset))]


def _bytes(dataset: Any) -> int:
    return len(dataset) * _pixels(_pair(dataset[0])[0]).numel() * 4 if len(dataset) else 0


def _gathered(items: Iterable[Any], batched: bool) -> tuple[Any, Any]:
    images: list[Tensor] = []
    labels: list[Tensor] = []
    with _gathering():
        for item in items:
            x, y = _pair(item)
            images.append(_pixels(x))
            labels.append(torch.as_tensor(y).detach().cpu())
        if not images:
            return torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)
        join = torch.cat if batched else torch.stack
        return join(images), join(labels)


def _pair(item: Any) -> tuple[Any, Any]:
    """Image and label of an item, or all of them: the first two of a sequence, or by key of a mapping."""
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    if isinstance(item, Mapping):
        x, y = (next((item[name] for name in names if name in item), None) for names in (IMAGES, LABELS))
        if x is not None and y is not None:
            return x, y
        raise UserError(
            f"expected images and labels under keys such as 'image' and 'label', found the keys {', '.join(map(str, item))[:200]}"
        )
    raise UserError(f"expected items of (image, label), found {type(item).__name__}: labels are missing")


def _pixels(image: Any) -> Tensor:
    """The item as a tensor: the pixels of a picture (PIL) or an array."""
    return image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
