"""Memory-mapped arrays, which may be larger than memory: a pair of .npy files."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from robustbench_rkhs.data.checks import check_labels
from robustbench_rkhs.data.sets import Arrays, DataSet
from robustbench_rkhs.data.splits import Split, split_digest
from robustbench_rkhs.data.stream import stream_of_array
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import data_root
from robustbench_rkhs.nodes.reasons import reason


class NPY(DataSet):
    """Your own arrays, read block by block from the disk: a folder with x_test.npy and y_test.npy (and those of train).

    Images are uint8, or floats in [0, 1], laid out as in a .npz file. Nothing is unpickled.
    """

    own: ClassVar[bool] = True

    name: Literal["npy"] = "npy"
    path: str
    """The folder, or its x_test.npy, here or in the data root."""

    @property
    def title(self) -> str:
        """The name of the folder."""
        return self._folder().resolve().name

    def test(self) -> Split:
        """The test images as a stream over the memory map."""
        x, y = self._pair("test")
        where = f"data set {self.title!r}, test"
        if not len(x):
            raise UserError(f"{where}: no images")
        check_labels(where, x.shape, y)
        images, labels = stream_of_array(x, where), torch.from_numpy(np.asarray(y).astype(np.int64))
        known = labels if not (self._folder() / "y_train.npy").is_file() else torch.from_numpy(np.array(self._read("y_train.npy")))
        classes = int(max(labels.max(), known.max())) + 1
        digest = split_digest(images, labels)
        if self.digest and self.digest != digest:
            raise UserError(f"data set {self.title!r}: expected test digest {self.digest}, found {digest}")
        return Split(self.title, "test", images, labels, torch.arange(len(x)), classes, digest)

    def arrays(self) -> Arrays:
        x_train, y_train = self._pair("train")
        x_test, y_test = self._pair("test")
        return x_train, y_train, x_test, y_test

    def _folder(self) -> Path:
        for root in (Path("."), data_root()):
            for folder in (root / self.path, (root / self.path).parent):
                if (folder / "x_test.npy").is_file():
                    return folder
        raise UserError(f"no x_test.npy in {self.path!r}, here or in data root {str(data_root())!r}")

    def _pair(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        return self._read(f"x_{part}.npy"), self._read(f"y_{part}.npy")

    def _read(self, name: str) -> np.ndarray:
        path = self._folder() / name
        if not path.is_file():
            raise UserError(f"no file {str(path)!r}")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is not a readable .npy file: {reason(error)}") from None
