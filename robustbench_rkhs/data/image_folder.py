"""Image folders: pictures in one folder per class, decoded block by block."""

import hashlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.data.sets import Arrays, DataSet
from robustbench_rkhs.data.splits import Split
from robustbench_rkhs.data.stream import Stream
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import data_root
from robustbench_rkhs.nodes.reasons import reason

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
"""File endings that are read as pictures."""
LISTING = "classes.txt"
"""File in the folder with the names of all classes of the model, one per line, if the folder has only some of them."""


class ImageFolder(DataSet):
    """Your own pictures: a folder with one subfolder per class, and in it png, jpg or other pictures.

    Class ids follow the order of the sorted names; if all names are numbers, these are the class ids. If the folder has only
    some of the classes, a file `classes.txt` in it names all of them, one per line. Reads the pictures of `test/` or `val/` if
    there is one, else those of the folder itself. Each is resized to `size` (its shorter side; then the centre is cropped).
    """

    own: ClassVar[bool] = True

    name: Literal["folder"] = "folder"
    path: str
    """The folder, here or in the data root."""
    size: int | None = Field(None, ge=1)
    """Height and width in pixels; default: that of the model if known, else that of the pictures if all have the same."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: colour; default: that of the model if known, else that of the first picture."""

    @property
    def title(self) -> str:
        """The name of the folder."""
        return Path(self.path).resolve().name

    def for_shape(self, shape: tuple[int, ...] | None) -> "ImageFolder":
        """Sets the size and channels of a model's images as defaults."""
        if shape is None or len(shape) != 3:
            return self
        known = {"channels": shape[0] if shape[0] in (1, 3) else None, "size": shape[1] if shape[1] == shape[2] else None}
        return self.model_copy(update={key: value for key, value in known.items() if getattr(self, key) is None})

    def test(self) -> Split:
        """The pictures as a stream: except for the first, they are decoded when they are read."""
        folder = self._folder(("test", "val"))
        return self._split(folder, "test")

    def arrays(self) -> Arrays:
        """Both parts in memory, for training."""
        train, test = (self._split(self._folder((name,), needed=True), "test") for name in ("train", "test"))
        x_train, x_test = (split.x[:].mul(255).round().byte().numpy() for split in (train, test))
        return x_train, train.y.numpy(), x_test, test.y.numpy()

    def _folder(self, parts: tuple[str, ...], needed: bool = False) -> Path:
        for root in (Path(self.path), data_root() / self.path):
            if root.is_dir():
                inner = next((root / part for part in parts if (root / part).is_dir()), None)
                if inner is None and needed:
                    raise UserError(f"data set {self.title!r}: no folder {parts[0]}/ in {root}")
                return inner or root
        raise UserError(f"no folder {self.path!r} here or in data root {str(data_root())!r}")

    def _split(self, folder: Path, part: str) -> Split:
        names, classes = self._classes(folder)
        pictures = [(path, label) for name, label in names.items() for path in sorted((folder / name).rglob("*")) if _picture(path)]
        if not pictures:
            raise UserError(f"data set {self.title!r}: no pictures in the subfolders of {folder}")
        paths = [path for path, _ in pictures]
        size, channels = self._shape(paths)
        where = f"data set {self.title!r}"

        def read(positions: np.ndarray) -> Tensor:
            return torch.stack([decoded(paths[place], size, channels, where) for place in positions])

        labels = torch.tensor([label for _, label in pictures])
        digest = _digest(folder, pictures, f"{size}x{channels}")
        return Split(self.title, part, Stream.of(read, len(paths)), labels, torch.arange(len(paths)), classes, digest)

    def _classes(self, folder: Path) -> tuple[dict[str, int], int]:
        """The class id of each subfolder, and the least number of classes."""
        there = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not there:
            raise UserError(f"data set {self.title!r}: expected a subfolder per class in {folder}, found none")
        listing = next((place / LISTING for place in (folder, folder.parent) if (place / LISTING).is_file()), None)
        if listing is not None:
            known = [line.strip() for line in listing.read_text().splitlines() if line.strip()]
            if unknown := [name for name in there if name not in known]:
                raise UserError(f"data set {self.title!r}: class {unknown[0]!r} is not in {listing}")
            return {name: known.index(name) for name in there}, len(known)
        if all(name.isdecimal() for name in there):
            return {name: int(name) for name in there}, max(map(int, there)) + 1
        return {name: number for number, name in enumerate(there)}, len(there)

    @property
    def counts_by_order(self) -> bool:
        """Whether class ids follow from the order of subfolder names: a model with more classes then needs `classes.txt`."""
        folder = self._folder(("test", "val"))
        listed = any((place / LISTING).is_file() for place in (folder, folder.parent))
        return not listed and not all(path.name.isdecimal() for path in folder.iterdir() if path.is_dir())

    def _shape(self, paths: list[Path]) -> tuple[int | tuple[int, int], int]:
        """The size of all pictures (a side, or height and width if all have the same) and their channels."""
        where = f"data set {self.title!r}"
        with opened(paths[0], where) as first:
            channels = self.channels or (1 if first.mode in ("1", "L", "I", "I;16") else 3)
            sizes = {first.size}
        if self.size is not None:
            return self.size, channels
        for path in paths[1:]:
            with opened(path, where) as picture:
                sizes.add(picture.size)
            if len(sizes) > 1:
                (a, b), (c, d) = sorted(sizes)
                raise UserError(f"{where}: pictures of {a}x{b} and {c}x{d} pixels; say a size: {self.path}:size=224")
        ((width, height),) = sizes
        return (height, width), channels


def opened(path: Path, where: str) -> Image.Image:
    """The picture, undecoded. Raises UserError where it is not a picture."""
    try:
        return Image.open(path)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: {path} is no readable picture: {reason(error)}") from None


def decoded(path: Path, size: int | tuple[int, int], channels: int, where: str) -> Tensor:
    """The picture as floats in [0, 1], (channels, height, width): shorter side to `size`, then the middle."""
    try:
        with opened(path, where) as picture:
            image = picture.convert("L" if channels == 1 else "RGB")
            if isinstance(size, int) and image.size != (size, size):
                scale = size / min(image.size)
                image = image.resize(tuple(max(size, round(side * scale)) for side in image.size), Image.Resampling.BILINEAR)  # type: ignore[arg-type]
                left, top = (image.width - size) // 2, (image.height - size) // 2
                image = image.crop((left, top, left + size, top + size))
            pixels = torch.from_numpy(np.array(image))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: {path} is no readable picture: {reason(error)}") from None
    return (pixels[None] if channels == 1 else pixels.permute(2, 0, 1)).contiguous().float().div_(255)


def _picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _digest(folder: Path, pictures: list[tuple[Path, int]], made: str) -> str:
    """sha256 of every picture's path, class and bytes, and of the size and channels."""
    sha = hashlib.sha256(made.encode())
    for path, label in pictures:
        sha.update(f"{path.relative_to(folder)} {label} ".encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()
