"""Streamed images: read block by block when indexed, never all at once."""

import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_rkhs.data.checks import channels_first, check_images
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.memory import FREED

BLOCK = 64
"""Images per block when all of them are read."""
NEAR = 16
"""Images read from a memory map between two releases of its pages: the system maps 64 kB around each image that is touched."""
Read = Callable[[np.ndarray], Tensor]
"""The images at these positions."""


class Stream(Tensor):
    """Replaces a tensor of images, with its shape, type and device, and reads a block of them when it is indexed.

    Supports rows by index, slice or positions, `split`, `len`, iteration and `to`. Anything else would need all images in
    memory, and raises UserError.
    """

    _read: Read
    _positions: np.ndarray

    @staticmethod
    def __new__(
        cls, read: Read, positions: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device = "cpu"
    ) -> "Stream":
        size = torch.Size((len(positions), *shape))
        self: Stream = Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=torch.device(device))
        self._read, self._positions = read, positions
        return self

    @classmethod
    def of(cls, read: Read, count: int, dtype: torch.dtype = torch.float32) -> "Stream":
        """The images at positions 0 to `count`; the first is read to see their shape."""
        return cls(read, np.arange(count), tuple(read(np.arange(1)).shape[1:]), dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Stream(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, int | np.integer) or (isinstance(index, Tensor) and not index.dim() and index.dtype != torch.bool):
            return self[np.array([range(len(self))[int(index)]])][0]
        chosen = self._positions[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if not len(chosen):
            return torch.zeros(0, *self.shape[1:], dtype=self.dtype, device=self.device)
        images = self._read(chosen).to(self.device, self.dtype)
        FREED.read(images.numel() * images.element_size())
        return images

    def __iter__(self) -> Iterator[Tensor]:
        return (image for block in self.split(BLOCK) for image in block)

    def split(self, split_size: int, dim: int = 0) -> Iterator[Tensor]:  # type: ignore[override]
        """Blocks of this many images, each read when it is reached."""
        return (self[start : start + split_size] for start in range(0, len(self), split_size))

    def at(self, positions: Tensor) -> "Stream":
        """These images only, not read yet."""
        return self._like(self._positions[positions.cpu().numpy()], self.dtype, self.device)

    def to(self, *args: Any, **kwargs: Any) -> "Stream":
        """The stream for another device or float type."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return self._like(self._positions, dtype or self.dtype, device or self.device)

    def cpu(self, *args: Any) -> "Stream":
        """The stream for the CPU."""
        return self._like(self._positions, self.dtype, torch.device("cpu"))

    def contiguous(self, *args: Any, **kwargs: Any) -> "Stream":
        """Itself: its blocks are contiguous."""
        return self

    def detach(self) -> "Stream":
        """Itself: its blocks do not require gradients."""
        return self

    def _like(self, positions: np.ndarray, dtype: torch.dtype, device: torch.device) -> "Stream":
        return Stream(self._read, positions, tuple(self.shape[1:]), dtype, device)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise UserError(
            f"these images are read block by block, and {function} needs all of them in memory: choose fewer by samples"
        )


def _forget(array: np.ndarray) -> None:
    """Release the pages of a read-only memory map that were read; the system may keep them in its cache."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and getattr(array, "mode", "") == "r" and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def stream_of_array(array: np.ndarray, where: str, box: str = "unit", low: float = 0.0, high: float = 1.0) -> Stream:
    """The rows of a memory map, checked as they are read; floats from `low` to `high`, and uint8 as 0 to 255, become [0, 1]."""

    def read(positions: np.ndarray) -> Tensor:
        block = np.empty((len(positions), *array.shape[1:]), array.dtype)
        order = np.argsort(positions, kind="stable")  # the disk is read forwards
        for start in range(0, len(order), NEAR):
            some = order[start : start + NEAR]
            block[some] = array[positions[some]]
            _forget(array)
        images = channels_first(torch.from_numpy(block), box)
        if images.dtype == torch.uint8:
            return images.float().div_(255)
        scaled = (images - low) / (high - low) if (low, high) != (0.0, 1.0) else images
        check_images(where, scaled.numpy(), box)
        return scaled if scaled.dtype == torch.float64 else scaled.float()

    if array.dtype != np.uint8:
        check_images(where, np.zeros((1, 1), array.dtype), box)
    return Stream.of(read, len(array), torch.float64 if array.dtype == np.float64 else torch.float32)
