"""Splits: tensors with their indices and digest."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from robustbench_rkhs.data.stream import BLOCK, Stream
from robustbench_rkhs.data.task import Task
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import Box, Order


@dataclass(frozen=True)
class Split:
    """Inputs (count, *shape), float32, in [0, 1] where `box` is unit; labels int64, of a regression float32 (count, outputs)."""

    data: str
    """Name of the data set."""
    split: str
    """`train`, `validation` or `test`."""
    x: Tensor
    """A `Stream` where they are read block by block."""
    y: Tensor
    index: Tensor
    """Position of each image in the original train or test arrays."""
    classes: int
    """Number of classes; for a regression, number of outputs."""
    digest: str
    """sha256 of the original arrays the images were taken from."""
    box: Box = "unit"
    """`unit`: pixels lie in [0, 1], and so must adversarial images; `none`: anywhere."""
    task: Task = "classification"

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def take(self, positions: Tensor) -> "Split":
        """The images at these positions of this split."""
        x = self.x.at(positions) if isinstance(self.x, Stream) else self.x[positions]
        return replace(self, x=x, y=self.y[positions], index=self.index[positions])

    def sample(self, count: int | None, seed: int = 0, order: Order = "stratified") -> "Split":
        """A seeded stratified subset in the original order, or the `first` images; all images where `count` is None."""
        if count is None or count == len(self):
            return self
        if not 1 <= count <= len(self):
            raise UserError(f"expected 1 to {len(self)} samples of {self.data} {self.split}, found {count}")
        if order == "first":
            return self.take(torch.arange(count, device=self.x.device))
        chosen = order_of(self.y.cpu().numpy(), self.task, seed)[:count]
        return self.take(torch.from_numpy(np.sort(chosen)).to(self.x.device))

    def to(self, device: str | torch.device) -> "Split":
        return replace(self, x=self.x.to(device), y=self.y.to(device), index=self.index.to(device))


@dataclass(frozen=True)
class Splits:
    """Train and validation are disjoint parts of the training set; test is the test set."""

    train: Split
    validation: Split
    test: Split


def split_digest(x: Tensor, y: Tensor) -> str:
    """The `arrays_digest` of images and labels; of a stream, block by block."""
    if not isinstance(x, Stream):
        return arrays_digest(x.cpu().numpy(), y.cpu().numpy())
    sha, labels = hashlib.sha256(), np.ascontiguousarray(y.cpu().numpy().astype(np.int64))
    for number, block in enumerate(x.cpu().split(BLOCK)):
        array = block.numpy()
        if number == 0:
            sha.update(f"{tuple(x.shape)}{array.dtype.str}".encode())
        sha.update(np.ascontiguousarray(array).data)
    sha.update(f"{labels.shape}{labels.dtype.str}".encode())
    sha.update(labels.data)
    return sha.hexdigest()


def arrays_digest(x: np.ndarray, y: np.ndarray) -> str:
    """sha256 over shape, type and bytes of images and labels (classes as int64)."""
    sha = hashlib.sha256()
    for array in (x, y if np.issubdtype(y.dtype, np.floating) else y.astype(np.int64)):
        array = np.ascontiguousarray(array)
        sha.update(f"{array.shape}{array.dtype.str}".encode())
        sha.update(array.data)
    return sha.hexdigest()


def order_by_class(y: np.ndarray, seed: int) -> np.ndarray:
    """A seeded order whose first n images are stratified, for every n (so smaller subsets are part of larger ones).

    Each class is shuffled; its r-th of c members gets position (r + 1/2) / c, with ties in random order.
    """
    generator = np.random.default_rng(seed)
    place = np.empty(len(y))
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        place[generator.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((generator.random(len(y)), place))


def order_of(y: np.ndarray, task: Task, seed: int) -> np.ndarray:
    """A seeded order for subsets, stratified if there are classes."""
    return np.random.default_rng(seed).permutation(len(y)) if task == "regression" else order_by_class(y, seed)
