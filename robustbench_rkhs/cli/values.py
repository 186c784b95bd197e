"""Types of the flags that are not fields of a recipe: their values are checked before anything else is done."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from robustbench_rkhs.evaluation.engine_choice import engine_from
from robustbench_rkhs.nodes.node import UserError, as_number

OTHER_FILES = {".npy", ".pt", ".pth", ".pkl", ".safetensors", ".zip", ".h5", ".csv", ".json", ".parquet", ".png"}
"""Suffixes of files of other kinds."""

DEVICE = re.compile(r"auto|(cpu|mps|cuda|xpu|hpu|xla|npu|meta)(:[0-9]{1,3})?")
"""Names of devices."""


def _folder(path: Path) -> Path:
    """A folder that exists, or could be made. Raises ValueError."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"expected a folder, found the file {str(place)!r}")
    return path


def _file(path: Path) -> Path:
    """A .npz file or a folder that exists, or could be written. Raises ValueError."""
    if path.suffix.lower() in OTHER_FILES and not path.is_dir():
        raise ValueError(f"expected FILE.npz or a folder, found {str(path)!r}")
    _folder(path.parent)
    return path


def _device(name: str) -> str:
    """A device's name; whether there is such a device is asked once PyTorch is loaded. Raises ValueError."""
    if not all(map(DEVICE.fullmatch, name.split(","))):
        raise ValueError(f"{name!r} cannot be used here: expected auto, cpu, mps, cuda, cuda:1 ...")
    return name


def _engine(text: str) -> str:
    """An engine's name and options. Raises ValueError."""
    try:
        engine_from(text)
    except UserError as error:
        raise ValueError(str(error).removeprefix("--engine: ")) from None
    return text


EngineName = Annotated[str, AfterValidator(_engine)]
"""What computes."""
Device = Annotated[str, AfterValidator(_device)]
"""Where to compute."""
Folder = Annotated[Path, AfterValidator(_folder)]
"""Folder for results."""
Target = Annotated[Path, AfterValidator(_file)]
"""File or folder for results."""
Count = Annotated[int, Field(ge=1, lt=2**63)]
"""Number of images, at least one."""


def numbers(flag: str, typed: Sequence[str], positive: bool = False) -> tuple[float, ...]:
    """The finite numbers typed after a flag. Raises UserError."""
    found = []
    for text in typed:
        value = as_number(text)
        if not math.isfinite(value) or (positive and value <= 0):
            raise UserError(f"{flag}: expected {'positive' if positive else 'finite'} numbers, found {text!r}")
        found.append(value)
    return tuple(found)
