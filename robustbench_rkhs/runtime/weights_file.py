"""Reader of untrusted safetensors files: the header is checked first, tensors are read in pieces."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.runtime.weights_header import weights_header

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PIECE = 1 << 22
"""Bytes per read."""


@dataclass(frozen=True)
class Stored:
    """A tensor's entry in the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Offset of its bytes in the file."""
    size: int


@dataclass(frozen=True)
class WeightsFile:
    """A file with a checked header; no tensor is read yet."""

    path: Path
    tensors: Mapping[str, Stored]

    @property
    def numbers(self) -> int:
        """Total number of values in all tensors."""
        return sum(count(one.shape) for one in self.tensors.values())

    def digest(self) -> str:
        """`weights_digest` of the tensors. Raises UserError if one is not finite.

        Cost: one read of the file, about 2 s per GiB, and a few MB of memory.
        """
        sha = hashlib.sha256()
        with self.path.open("rb") as handle:
            for name in sorted(self.tensors):
                one = self.tensors[name]
                sha.update(f"{name}{one.shape}{one.dtype}".encode())
                for piece in _pieces(handle, one):
                    sha.update(piece)
                    if one.dtype.is_floating_point and not torch.frombuffer(piece, dtype=one.dtype).isfinite().all():
                        raise UserError(f"{self.path}: {name!r} holds NaN or infinity")
        return sha.hexdigest()

    def must_fit(self, expected: Mapping[str, Tensor]) -> None:
        """Raises UserError if names, shapes or types differ from a network's state, whose tensors may be on `meta`."""
        for name in self.tensors:
            if name not in expected:
                raise UserError(f"{self.path}: unexpected tensor {name[:80]!r}; {did_you_mean(name[:80], expected)[:200]}")
        for name, tensor in expected.items():
            if name not in self.tensors:
                raise UserError(f"{self.path}: tensor {name!r} is missing")
            one = self.tensors[name]
            if one.shape != tuple(tensor.shape):
                raise UserError(f"{self.path}: {name!r} has shape {one.shape}, expected {tuple(tensor.shape)}")
            if one.dtype.is_floating_point != tensor.dtype.is_floating_point or tensor.dtype.is_complex:
                raise UserError(f"{self.path}: {name!r} holds {one.dtype}, expected {tensor.dtype}")


def weights_file(path: Path, limits: Limits = STRANGERS) -> WeightsFile:
    """Read and check the header of a safetensors file. Raises UserError if it is invalid or exceeds the limits."""
    header = weights_header(path, limits)
    tensors = {name: _stored(path, name, said, header.end) for name, said in header.tensors.items()}
    end = header.end
    for name, one in sorted(tensors.items(), key=lambda pair: (pair[1].begin, pair[1].size)):
        if one.begin != end:
            raise UserError(f"{path}: tensor {name[:80]!r} does not begin where the one before it ends")
        end += one.size
    if end != header.size:
        raise UserError(f"{path} is not a readable safetensors file: it has {header.size:,} bytes, its header describes {end:,}")
    return WeightsFile(path, tensors)


def _stored(path: Path, name: str, said: Any, start: int) -> Stored:
    """Parse a tensor's entry in the header. Raises UserError."""
    shape, ends = (_whole(said.get(key) if isinstance(said, dict) else None) for key in ("shape", "data_offsets"))
    kind = str(said.get("dtype")) if isinstance(said, dict) else ""
    if shape is None or ends is None or len(shape) > 16 or len(ends) != 2 or kind not in TYPES:
        raise UserError(f"{path}: its header has no valid entry for tensor {name[:80]!r}: {str(said)[:80]}")
    dtype, size = TYPES[kind], ends[1] - ends[0]
    if count(shape) * dtype.itemsize != size:
        raise UserError(f"{path}: tensor {name[:80]!r} of shape {shape} has {size:,} bytes")
    return Stored(dtype, shape, start + ends[0], size)


def count(shape: tuple[int, ...]) -> int:
    """Number of values in a tensor of this shape."""
    return math.prod(shape)


def _whole(value: Any) -> tuple[int, ...] | None:
    """A list of integers from 0 to 2^48 as a tuple; None for anything else."""
    fine = isinstance(value, list) and all(type(one) is int and 0 <= one < 2**48 for one in value)
    return tuple(value) if fine else None


def _pieces(handle: BinaryIO, one: Stored) -> Any:
    """A tensor's bytes, in pieces."""
    handle.seek(one.begin)
    left = one.size
    while left:
        piece = bytearray(handle.read(min(PIECE, left)))
        if not piece:
            raise UserError("the file became shorter while it was read")
        left -= len(piece)
        yield piece
