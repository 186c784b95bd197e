"""Types of the flags that are no fields of a recipe: what they take is checked before anything is done."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field


def _folder(path: Path) -> Path:
    """A folder that is there, or could be made. Raises ValueError."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"expected a folder, found the file {str(place)!r}")
    return path


def _file(path: Path) -> Path:
    """A file that is there, or could be written. Raises ValueError."""
    _folder(path.parent)
    return path


Folder = Annotated[Path, AfterValidator(_folder)]
"""Where results go."""
Target = Annotated[Path, AfterValidator(_file)]
"""A file or folder that results go to."""
Count = Annotated[int, Field(ge=1, lt=2**63)]
"""How many images, at least one."""
