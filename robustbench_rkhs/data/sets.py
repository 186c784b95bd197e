"""The data sets: from scikit-learn, torchvision's standard folders, or NAME.npz in the data root."""

import os
import socket
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.data.augmentation import Padding, augment, augment_on_device
from robustbench_rkhs.data.checks import as_images, check_arrays, check_part
from robustbench_rkhs.data.splits import Split, Splits, arrays_digest, order_by_class, order_of
from robustbench_rkhs.data.task import Task
from robustbench_rkhs.nodes.counts import listed
from robustbench_rkhs.nodes.node import Node, Seed, UserError
from robustbench_rkhs.nodes.paths import data_root
from robustbench_rkhs.nodes.reasons import reason as reason_of
from robustbench_rkhs.nodes.threat_model import Box
from robustbench_rkhs.runtime.events import PhaseStarted, emit

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""x_train, y_train, x_test, y_test; images uint8 or float in [0, 1], channels last or first."""


class DataSet(Node):
    """Common fields of all data sets. Validation images come from the training set, never from the test set."""

    task: ClassVar[Task] = "classification"
    """The task: `classification`, `regression` (labels are numbers), or `ranking` (two classes, one of them rare)."""
    box: ClassVar[Box] = "unit"
    """`unit`: images and adversarial images lie in [0, 1]; `none`: inputs may have any value."""
    not_shared: ClassVar[frozenset[str]] = frozenset({"digest"})

    own: ClassVar[bool] = False
    """True for users' own data sets: a model may have more classes than occur in the labels."""

    train: int | None = Field(None, ge=1)
    """Number of training images (a seeded stratified subset); default: all that are not for validation."""
    validation: int = Field(0, ge=0)
    """Number of validation images, taken from the training set, by which the best epoch is chosen."""
    seed: Seed = 0
    """Seed of the subsets."""
    crop: int = Field(0, ge=0)
    """Training images are shifted by up to this many pixels."""
    crop_padding: Padding = "zeros"
    """Padding of shifted images: `zeros`, or the image mirrored at its edge (`reflect`)."""
    flip: bool = False
    """Training images are mirrored at random."""
    jitter: bool = False
    """Training images change brightness, contrast, saturation and hue at random."""
    digest: str | None = None
    """Required sha256 of the test arrays; default: any."""

    def arrays(self) -> Arrays:
        """The raw arrays, or one clear line about what is missing or wrong."""
        raise TypeError(f"{type(self).__name__} is not a data set by itself")

    def checked(self) -> Arrays:
        """The raw arrays, after every check."""
        emit(PhaseStarted(phase=f"reading data {self.title}"))
        x_train, y_train, x_test, y_test = (np.asarray(array) for array in self.arrays())
        check_arrays(self.title, self.task, self.box, x_train, y_train, x_test, y_test)
        found = arrays_digest(x_test, y_test)
        if self.digest and self.digest != found:
            raise UserError(f"data set {self.title!r}: expected test digest {self.digest}, found {found}")
        return x_train, y_train, x_test, y_test

    def test_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw images and labels of the test set, alone in memory where they lie in files of their own."""
        _, _, x_test, y_test = self.checked()
        return x_test, y_test

    @property
    def title(self) -> str:
        """The name in tables."""
        return self.label

    @property
    def augments(self) -> bool:
        """Whether training images are augmented."""
        return bool(self.crop or self.flip or self.jitter)

    def augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A batch of training images, augmented as the fields say."""
        return augment(x, self.crop, self.flip, generator, self.crop_padding, self.jitter)

    def augmented_on_device(self, x: Tensor, keys: Tensor, seed: int) -> Tensor:
        """The same augmentation, drawn on the images' device by hashes of (seed, key)."""
        return augment_on_device(x, self.crop, self.flip, keys, seed, self.crop_padding, self.jitter)

    def test(self) -> Split:
        """The test split alone."""
        _, y_train, x_test, y_test = self.checked()
        return self._part("test", x_test, y_test, np.arange(len(y_test)), y_train, arrays_digest(x_test, y_test))

    def load(self) -> Splits:
        """Train, validation and test as tensors."""
        x_train, y_train, x_test, y_test = self.checked()
        order = order_of(y_train, self.task, self.seed)
        wanted = len(order) - self.validation if self.train is None else self.train
        if wanted < 1 or self.validation + wanted > len(order):
            raise UserError(
                f"data set {self.title!r} has {len(order)} training images, "
                f"found train {self.train} and validation {self.validation}"
            )
        digest = arrays_digest(x_train, y_train)
        validation, train = np.sort(order[: self.validation]), np.sort(order[self.validation : self.validation + wanted])
        splits = Splits(
            self._part("train", x_train, y_train, train, y_train, digest),
            self._part("validation", x_train, y_train, validation, y_train, digest),
            self._part("test", x_test, y_test, np.arange(len(y_test)), y_train, arrays_digest(x_test, y_test)),
        )
        self._can_augment(splits.train.shape)
        return splits

    def _part(self, part: str, x: np.ndarray, y: np.ndarray, positions: np.ndarray, y_train: np.ndarray, digest: str) -> Split:
        """The images at these positions as a split."""
        regression = self.task == "regression"
        classes = y_train.shape[1] if regression else int(y_train.max()) + 1
        labels = torch.from_numpy(y[positions].astype(np.float32 if regression else np.int64))
        index = torch.from_numpy(positions.astype(np.int64))
        images = as_images(x[positions], self.box)
        return Split(self.title, part, images, labels, index, classes, digest, self.box, self.task)

    def _can_augment(self, shape: tuple[int, ...]) -> None:
        """Raises UserError where the images cannot be augmented as asked."""
        if self.augments and (len(shape) != 3 or self.box != "unit"):
            raise UserError(f"data set {self.title!r}: crop, flip and jitter are for images in [0, 1], found shape {shape}")
        if self.augments and self.crop >= min(shape[1:]):
            raise UserError(
                f"data set {self.title!r}: expected a crop below {min(shape[1:])}, the images' shorter side, found crop {self.crop}"
            )
        if self.jitter and shape[0] not in (1, 3):
            raise UserError(f"data set {self.title!r}: jitter needs one or three channels, found {shape[0]}")
        if self.crop_padding == "reflect" and self.crop >= min(shape[1:], default=1):
            raise UserError(f"data set {self.title!r}: crop {self.crop} with reflect is too large for images of shape {shape}")


class Digits(DataSet):
    """scikit-learn's digits: 1,797 real 8x8 handwritten digits, ten classes, embedded (no download).

    The 500 test images are a fixed stratified choice. Source: Alpaydin & Kaynak, UCI, 1998.
    """

    name: Literal["digits"] = "digits"

    def arrays(self) -> Arrays:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = (bunch.images / 16).astype(np.float32)[:, None]
        order = order_by_class(bunch.target, seed=0)
        test, train = np.sort(order[:500]), np.sort(order[500:])
        return x[train], bunch.target[train], x[test], bunch.target[test]


class _Torchvision(DataSet):
    """Read from torchvision's standard folder, else from NAME.npz, else downloaded through torchvision."""

    folder: ClassVar[str] = ""

    def arrays(self) -> Arrays:
        root, name = data_root(), str(getattr(self, "name", ""))
        if (root / self.folder).exists():
            return self._folder(root)
        if (root / f"{name}.npz").exists():
            return read_npz(root / f"{name}.npz")
        expected = f"expected {self.folder}/ or {name}.npz there (set RKHS_DATA to another data root)"
        if os.environ.get("RKHS_DOWNLOAD", "1") == "0":
            raise UserError(f"data set {name!r} is not in data root {str(root)!r}: {expected}")
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)
        try:
            self._download(root)
        except Exception as error:  # torchvision passes on any error of the network
            reason = reason_of(error)
            line = f"data set {name!r} is not in data root {str(root)!r}: {expected}; download failed: {reason}"
            raise UserError(line) from None
        finally:
            socket.setdefaulttimeout(patience)
        return self._folder(root)

    def _classes(self) -> Any:
        from torchvision import datasets

        return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "mnist": datasets.MNIST}[str(getattr(self, "name", ""))]

    def _download(self, root: Path) -> None:
        self._classes()(str(root), train=True, download=True)
        self._classes()(str(root), train=False, download=True)

    def test_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        root = data_root()
        if not (root / self.folder).exists():
            return super().test_arrays()
        self._verify(root)
        test = self._classes()(str(root), train=False, download=False)
        return np.asarray(test.data), np.asarray(test.targets)

    def _folder(self, root: Path) -> Arrays:
        self._verify(root)
        train, test = (self._classes()(str(root), train=part, download=False) for part in (True, False))
        return np.asarray(train.data), np.asarray(train.targets), np.asarray(test.data), np.asarray(test.targets)

    def _verify(self, root: Path) -> None:
        """Raises UserError where a file is missing or altered."""
        from torchvision.datasets.utils import check_md5

        kind = self._classes()
        for file, md5 in [*kind.train_list, *kind.test_list]:  # checked before torchvision unpickles them
            path = root / self.folder / file
            if not path.is_file():
                raise UserError(f"data set {self.folder}: {path} is missing")
            if not check_md5(str(path), md5):
                raise UserError(f"data set {self.folder}: {path} is truncated or altered (its md5 is not {md5})")


class CIFAR10(_Torchvision):
    """CIFAR-10: 50,000 + 10,000 colour images of 32x32, ten classes. Source: Krizhevsky, 2009."""

    name: Literal["cifar10"] = "cifar10"
    folder: ClassVar[str] = "cifar-10-batches-py"


class CIFAR100(_Torchvision):
    """CIFAR-100: 50,000 + 10,000 colour images of 32x32, a hundred classes. Source: Krizhevsky, 2009."""

    name: Literal["cifar100"] = "cifar100"
    folder: ClassVar[str] = "cifar-100-python"


MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class MNIST(_Torchvision):
    """MNIST: 60,000 + 10,000 grey images of 28x28, ten digits. Source: LeCun et al., 1998."""

    name: Literal["mnist"] = "mnist"
    folder: ClassVar[str] = "MNIST/raw"

    def _verify(self, root: Path) -> None:
        from torchvision.datasets.utils import check_md5

        for file, md5 in MNIST_MD5.items():
            path = root / self.folder / file
            if not path.is_file():
                raise UserError(f"data set mnist: {path} is missing")
            if not check_md5(str(path), md5):
                raise UserError(f"data set mnist: {path} is truncated or altered (its md5 is not {md5})")


class NPZ(DataSet):
    """Your own arrays: a .npz file with x_train y_train x_test y_test; images uint8, or float in [0, 1].

    Images are (count, channel, height, width), (count, height, width, channel), (count, height, width) or (count, features).
    x_test and y_test are enough to evaluate on.
    """

    own: ClassVar[bool] = True

    name: Literal["npz"] = "npz"
    path: str
    """The file, or its name in the data root."""

    @property
    def title(self) -> str:
        """The name of the file."""
        return Path(self.path).name

    def arrays(self) -> Arrays:
        return read_npz(self._file())

    def test(self) -> Split:
        """The test images; the file may hold no others."""
        path = self._file()
        if set(npz_names(path)) & {"x_train", "y_train"}:
            return super().test()
        x, y = read_arrays(path, ("x_test", "y_test"))
        check_part(f"data set {self.title!r}, test", x, y, self.task, self.box)
        digest = arrays_digest(x, y)
        if self.digest and self.digest != digest:
            raise UserError(f"data set {self.title!r}: expected test digest {self.digest}, found {digest}")
        return self._part("test", x, y, np.arange(len(y)), y, digest)

    def _file(self) -> Path:
        for path in (Path(self.path), data_root() / self.path):
            if path.is_file():
                return path
        # a recipe may be a stranger's, who learns of no other file
        raise UserError(f"no file {self.path!r} here or in data root {str(data_root())!r}")


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in a .npz file; none where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []


def read_npz(path: Path) -> Arrays:
    """The four arrays of training and test. Raises UserError where the file is empty, truncated or lacks one."""
    x_train, y_train, x_test, y_test = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
    return x_train, y_train, x_test, y_test


def read_arrays(path: Path, keys: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """These arrays of a .npz file, never unpickled. Raises UserError where it is empty, truncated or lacks one."""
    try:
        with zipfile.ZipFile(path) as archive:
            size, room = sum(member.file_size for member in archive.infolist()), memory()
            if size > room:
                raise UserError(f"{path}: its arrays take {size:,} bytes, this machine has {room:,}")
        with np.load(path, allow_pickle=False) as stored:
            missing = [key for key in keys if key not in stored]
            if missing:
                as_keys = ", ".join(f"{key}={'IMAGES' if key[0] == 'x' else 'LABELS'}" for key in missing)
                raise UserError(
                    f"{path}: expected arrays {listed(keys)}, found {listed(list(stored)) or 'none'}; "
                    f"add what is missing: np.savez(FILE, {as_keys})"
                )
            return tuple(stored[key] for key in keys)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, AttributeError, MemoryError) as error:
        pickled = "pickle" in str(error)  # so numpy calls whatever it does not know, and advises to run it
        why = "it is no archive of plain arrays" if pickled else reason_of(error)
        raise UserError(f"{path} is not a readable .npz file: {why}") from None
