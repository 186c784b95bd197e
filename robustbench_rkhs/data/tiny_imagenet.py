"""Tiny-ImageNet, from its own folder, and 20 of its classes."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from robustbench_rkhs.data.sets import Arrays, DataSet, read_npz
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import data_root
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.files import write_whole

FOLDER = "tiny-imagenet-200"
SIDE = 64
"""Height and width of every picture."""


class TinyImageNet(DataSet):
    """Tiny-ImageNet: 100,000 + 10,000 colour images of 64x64, 200 classes. Source: Stanford CS231n, 2015.

    Read from the folder tiny-imagenet-200/ of the data root (train/WNID/images/, val/images/, val/val_annotations.txt,
    wnids.txt). The test set is val/: the labels of test/ were never published. Classes count in the order of their sorted
    WNIDs. Decoded once (half a minute), then cached beside the folder as tiny_imagenet.npz (1.3 GB), if it can be written.
    The whole set takes 5.4 GB as float32: choose a part by `train`.
    """

    name: Literal["tiny_imagenet"] = "tiny_imagenet"
    classes: int = Field(200, ge=2)
    """Number of classes that the folder must have; the real one has 200."""
    per_class: tuple[int, int] = (500, 50)
    """Training and test images that each class must have."""

    def arrays(self) -> Arrays:
        root = data_root()
        folder, kept = root / FOLDER, root / "tiny_imagenet.npz"
        if not folder.is_dir():
            if kept.is_file():
                return self._counted(read_npz(kept), str(kept))
            raise UserError(
                f"data set 'tiny_imagenet' is not in data root {str(root)!r}: expected {FOLDER}/ (unzip "
                f"http://cs231n.stanford.edu/tiny-imagenet-200.zip there) or tiny_imagenet.npz"
            )
        listing = folder_listing(folder)
        names = [f"{path.relative_to(folder)} {wnid}" for part in listing for path, wnid in part]
        source = hashlib.sha256("\n".join(names).encode()).hexdigest()
        if kept.is_file() and _source_of(kept) == source:
            return self._counted(read_npz(kept), str(kept))
        decoded = self._counted(_decoded(*listing), str(folder))
        named = dict(zip(("x_train", "y_train", "x_test", "y_test"), decoded, strict=True))
        try:
            write_whole(kept, lambda path: _save(path, source=np.array(source), **named))
        except UserError:
            pass  # if the data root is read-only, the pictures are decoded each time
        return decoded

    def _counted(self, arrays: Arrays, where: str) -> Arrays:
        """The arrays, after a check that every class has its images."""
        for part, labels, wanted in (("train", arrays[1], self.per_class[0]), ("val", arrays[3], self.per_class[1])):
            counts = np.bincount(labels)
            if len(counts) != self.classes:
                raise UserError(
                    f"data set 'tiny_imagenet': expected {self.classes} classes, found {len(counts)} in {part} of {where}"
                )
            if (counts != wanted).any():
                odd = int((counts != wanted).argmax())
                raise UserError(
                    f"data set 'tiny_imagenet': expected {wanted} images of each class in {part} of {where}, "
                    f"found {counts[odd]} of class {odd}"
                )
        return arrays


Listing = list[tuple[Path, str]]
"""Picture and WNID of each image, in their order."""


def folder_listing(folder: Path) -> tuple[Listing, Listing]:
    """The pictures of train/ and val/, by class. Raises UserError where a file or folder is missing."""
    for needed in ("wnids.txt", "train", "val/images", "val/val_annotations.txt"):
        if not (folder / needed).exists():
            raise UserError(f"data set 'tiny_imagenet': {folder / needed} is missing")
    wnids = sorted((folder / "wnids.txt").read_text().split())
    train, known = [], set(wnids)
    for wnid in wnids:
        images = folder / "train" / wnid / "images"
        if not images.is_dir():
            raise UserError(f"data set 'tiny_imagenet': {images} is missing")
        train += [(path, wnid) for path in sorted(images.glob("*.JPEG"))]
    val = []
    for number, line in enumerate((folder / "val/val_annotations.txt").read_text().splitlines()):
        words = line.split()
        if len(words) < 2 or words[1] not in known:
            raise UserError(f"data set 'tiny_imagenet': val_annotations.txt, line {number + 1}: no image and WNID in {line[:60]!r}")
        path = folder / "val/images" / words[0]
        if not path.is_file():
            raise UserError(f"data set 'tiny_imagenet': {path} is missing")
        val.append((path, words[1]))
    return train, val


def _decoded(train: Listing, val: Listing) -> Arrays:
    label = {wnid: number for number, wnid in enumerate(sorted({wnid for _, wnid in train}))}
    parts: list[np.ndarray] = []
    for listing in (train, val):
        images = np.empty((len(listing), SIDE, SIDE, 3), np.uint8)
        for position, (path, _) in enumerate(listing):
            images[position] = _picture(path)
        parts += [images, np.array([label.get(wnid, len(label)) for _, wnid in listing], dtype=np.int64)]
    return parts[0], parts[1], parts[2], parts[3]


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:  # PIL's words for a damaged file
        raise UserError(f"data set 'tiny_imagenet': {path} is no readable picture: {reason(error)}") from None
    if pixels.shape != (SIDE, SIDE, 3):
        raise UserError(
            f"data set 'tiny_imagenet': {path}: expected {SIDE}x{SIDE} pixels, found {pixels.shape[1]}x{pixels.shape[0]}"
        )
    return pixels


def _save(path: Path, **arrays: np.ndarray) -> None:
    with path.open("wb") as file:  # np.savez adds a suffix to a path
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _source_of(path: Path) -> str:
    """Digest of the listing from which the cached arrays were decoded; empty where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["source"]) if "source" in stored else ""
    except Exception:  # numpy raises many kinds of errors for foreign bytes; the file is then decoded again
        return ""


class TinyImageNet20(DataSet):
    """20 of Tiny-ImageNet's 200 classes, chosen for variety: 10,000 + 1,000 colour images of 64x64.

    Read from tiny_imagenet20.npz in the data root (x_train y_train x_test y_test, uint8). Accuracies are not comparable with
    those on all 200 classes. Source: Stanford CS231n, 2015; the test images are from val/.
    """

    name: Literal["tiny_imagenet20"] = "tiny_imagenet20"

    def arrays(self) -> Arrays:
        path = data_root() / "tiny_imagenet20.npz"
        if not path.is_file():
            raise UserError(f"data set 'tiny_imagenet20' is not in data root {str(data_root())!r}: expected {path.name} there")
        return read_npz(path)
