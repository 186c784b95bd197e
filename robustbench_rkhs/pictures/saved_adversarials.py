"""The nearest adversarial images of a saved file, beside the clean images of its data set."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from robustbench_rkhs.nodes.limits import OWN, STRANGERS
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.adversarial_figure import draw_nearest, nearest_first
from robustbench_rkhs.verdicts import read_adversarials
from robustbench_rkhs.zoo import SETS, named_data


def nearest_picture(file: Path, out: Path, data: str | None = None, count: int = 8) -> list[Path]:
    """OUT/nearest-NAME.*: the images of FILE.npz with the smallest distances. The claims of the file are shown unchecked.

    Raises UserError where the file is invalid, or its clean images are not those of the data set.
    """
    stored = read_adversarials(file, STRANGERS.model_copy(update={"images": OWN.images}))
    name = data or stored.about.data
    if data is None and name not in SETS:
        raise UserError(f"{file} names data {name[:40]!r}, which is not a known data set: add --data (a data set or FILE.npz)")
    split = named_data(name).test()
    places = nearest_first(stored, count)
    where = {index: place for place, index in enumerate(split.index.tolist())}
    wanted = stored.index[places].tolist()
    if missing := [index for index in wanted if index not in where]:
        raise UserError(f"{file}: {split.data} has no test image of index {missing[0]}")
    clean = split.x[torch.tensor([where[index] for index in wanted], dtype=torch.int64)].numpy().astype(stored.images.dtype)
    input_digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in clean], dtype=np.str_)
    if (input_digests != stored.input_sha256[places]).any():
        raise UserError(f"{file}: its clean images are not those of {split.data} (their sha256 differ)")
    return draw_nearest(stored, clean, places, out / f"nearest-{file.stem}")
