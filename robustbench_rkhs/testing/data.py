"""Conformance checks of a data set: disjoint splits, images in their box, reproducible loading."""

import torch

from robustbench_rkhs.data import DataSet, Split, Stream
from robustbench_rkhs.testing.must import must

BLOCK = 64
"""Images read at once, so that large data sets are read block by block."""


def check_data(data: DataSet, validation: int = 10) -> None:
    """All checks of a data set, with `validation` images split off its training set."""
    splits = data.model_copy(update={"validation": validation}).load()
    for split in (splits.train, splits.validation, splits.test):
        well_formed(split)
    must(not set(splits.train.index.tolist()) & set(splits.validation.index.tolist()), "validation must not share training images")
    must(len(splits.validation) == validation, f"expected {validation} validation images, found {len(splits.validation)}")
    must(splits.train.shape == splits.test.shape and splits.train.classes == splits.test.classes, "splits must be of one shape")
    alone = data.test()
    twice = zip(alone.x.split(BLOCK), splits.test.x.split(BLOCK), strict=True)
    same = all(torch.equal(one, other) for one, other in twice) and torch.equal(alone.y, splits.test.y)
    must(same, "the test images must be the same each time")
    again = data.test() if isinstance(alone.x, Stream) else splits.test  # pictures in folders are digested undecoded
    must(alone.digest == again.digest, "the digest of the test images must be the same each time")


def well_formed(split: Split) -> None:
    """As many labels and indices as images; finite images in their box; labels within the classes."""
    name = f"{split.data} {split.split}"
    must(len(split.x) == len(split.y) == len(split.index) > 0, f"{name}: expected as many labels and indices as images")
    for block in split.x.split(BLOCK):
        must(block.is_floating_point() and bool(block.isfinite().all()), f"{name}: images must be finite floats")
        must(split.box == "none" or (block.min() >= 0 and block.max() <= 1), f"{name}: images must lie in [0, 1]")
    if split.task == "regression":
        must(split.y.is_floating_point() and bool(split.y.isfinite().all()), f"{name}: labels must be finite floats")
    else:
        must(split.y.dtype == torch.int64 and 0 <= int(split.y.min()) and int(split.y.max()) < split.classes, f"{name}: labels")
