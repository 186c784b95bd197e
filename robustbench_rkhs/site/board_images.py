"""The images of a board: how many an entry needs at least, and which."""

from typing import Any

import numpy as np

from robustbench_rkhs.verdicts import Brief


def ranked_images(one: Brief) -> dict[str, Any]:
    """The images of a ranked entry, which all others have too: `minimum`, `which` in words, and runs of `indices`.

    indices: the first index of each run of images that follow each other, and how many there are.
    """
    starts = np.flatnonzero(np.diff(one.index, prepend=-2) != 1)
    counts = np.diff(np.append(starts, len(one.index)))
    runs = [[first, count] for first, count in zip(one.index[starts].tolist(), counts.tolist(), strict=True)]
    return {"minimum": one.images, "which": _which(one), "indices": runs}


def _which(one: Brief) -> str:
    """How the images were chosen. That they are the first ones is read off their indices, whatever the settings say."""
    said = one.about.settings
    if said.get("samples", one.images) is None:
        return f"all {one.images:,} test images"
    if np.array_equal(one.index, np.arange(one.images)):
        return f"the first {one.images:,} test images, in the order of the data set"
    if said.get("order") == "stratified":
        return f"drawn from the test images with seed {one.about.seed}, so that each class has its share"
    return "chosen from the test images; the JSON file has their indices"
