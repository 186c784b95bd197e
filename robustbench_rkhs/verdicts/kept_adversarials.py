"""Adversarial images kept beside the rows of attacks, and the nearest one of each image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.seals import Damaged, seal_of
from robustbench_rkhs.verdicts.adversarials import Adversarials, off_grid, read_arrays, write_arrays

SIDECAR = {"index": ("<i8",), "images": ("<f4", "<f8"), "predicted": ("<i8",), "radius": ("<f8",)}
"""Arrays of the file beside a finished part."""


class Kept(NamedTuple):
    """Adversarial images of the rows of a table that have one, in their order."""

    images: np.ndarray
    predicted: np.ndarray
    """The predicted class of each; -1 where the logits are not finite."""


def holding(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a counted adversarial image."""
    result: pd.DataFrame = table[(table["kind"] == "attack") & np.isfinite(table["radius"])]
    return result


def write_kept(kept: Kept, table: pd.DataFrame, path: Path, durable: bool = True) -> str:
    """Writes the images beside a part, with the indices of its rows; returns their seal. Raises UserError if not writable."""
    rows = holding(table)
    ties = {"index": rows["index"].to_numpy(np.int64), "radius": rows["radius"].to_numpy(np.float64)}
    return write_arrays(path, {**ties, "images": kept.images, "predicted": kept.predicted}, durable)


def read_kept(table: pd.DataFrame, path: Path, seal: str) -> Kept:
    """The images of a part, checked against its seal. Raises UserError if the file is missing, damaged, or of other rows."""
    rows = holding(table)
    if not path.is_file() or seal_of(path, required=True) != seal:
        raise Damaged(path, "expected the images of the part beside it")
    found = read_arrays(path, SIDECAR, "the images of a part")
    fits = all(np.array_equal(found[column], rows[column].to_numpy(found[column].dtype)) for column in ("index", "radius"))
    if not fits or len(found["images"]) != len(rows) or len(found["predicted"]) != len(rows):
        raise UserError(f"{path} holds the images of another part")
    return Kept(found["images"], found["predicted"])


class Nearest:
    """Collects the nearest counted adversarial image of each image, over all attacks. Keeps one image each."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, Any]] = {}
        self._bits: int | None = None

    def see(self, table: pd.DataFrame, kept: Kept) -> None:
        """Takes the rows of a part that have an adversarial image, and those images."""
        rows = holding(table).to_dict("records")
        for row, image, said in zip(rows, kept.images, kept.predicted.tolist(), strict=True):
            index = int(row["index"])
            if index not in self._rows or row["radius"] < self._rows[index]["radius"]:
                self._rows[index] = {str(key): value for key, value in row.items()} | {"image": image.copy(), "said": said}

    def held(self) -> tuple[list[int], np.ndarray]:
        """The indices of the images that an attack broke, and their nearest adversarial images."""
        index = sorted(self._rows)
        return index, np.stack([self._rows[one]["image"] for one in index]) if index else np.zeros(0, np.float32)

    def round_to(self, bits: int, rounded: Mapping[int, Mapping[str, Any]]) -> None:
        """Puts images of this many bits a pixel in place of those of these indices; the others stay as they are.

        rounded: by index, `image`, `said`, `distance_l2` and `distance_linf`.
        """
        self._bits = bits
        for index, fields in rounded.items():
            self._rows[index] |= {**fields, "bits": bits}

    def adversarials(self, about: Mapping[str, Any], table: pd.DataFrame, clean: np.ndarray, index: np.ndarray) -> Adversarials:
        """The adversarial images found, by index; misclassified clean images count as theirs, at distance 0.

        table: the evaluation's; clean: its images, at these positions of the original arrays.
        """
        place = {int(one): number for number, one in enumerate(index.tolist())}
        said = table[(table["kind"] == "certificate") & (table["method"] == "prediction")].drop_duplicates("index")
        rows = dict(self._rows)
        for row in said[said["label"] != said["predicted"]].to_dict("records"):
            own = {"method": "clean", "distance_l2": 0.0, "distance_linf": 0.0, "said": row["predicted"]}
            image = clean[place[row["index"]]]
            rows[int(row["index"])] = {str(key): value for key, value in row.items()} | own | {"image": image}
            if self._bits is not None and not off_grid(image[None], np.array([self._bits]))[0]:
                rows[int(row["index"])]["bits"] = self._bits
        order = sorted(rows)

        def column(name: str, kind: Any) -> np.ndarray:
            return np.array([rows[one][name] for one in order], dtype=kind)

        images = np.stack([rows[one]["image"] for one in order]) if order else np.zeros((0, *clean.shape[1:]), clean.dtype)
        arrays = {name: column(name, np.int64) for name in ("index", "label", "predicted")}
        arrays |= {name: column(name, np.float64) for name in ("distance_l2", "distance_linf")}
        arrays |= {name: column(name, np.str_) for name in ("method", "input_sha256")}
        if self._bits is not None:
            arrays["bits"] = np.array([rows[one].get("bits", 0) for one in order], dtype=np.int64)
        return Adversarials.checked(about, {**arrays, "predicted_adversarial": column("said", np.int64), "images": images})
