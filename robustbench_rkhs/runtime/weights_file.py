"""A safetensors file from anybody: its header is read and checked first, its tensors a piece at a time."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from robustbench_rkhs.nodes.documents import json_of
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError, did_you_mean

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
"""Bytes that are read at once."""


@dataclass(frozen=True)
class Stored:
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Where its bytes begin in the file."""
    size: int


@dataclass(frozen=True)
class WeightsFile:
    """A file whose header was read: every tensor lies where it says, and none is read yet."""

    path: Path
    tensors: Mapping[str, Stored]

    @property
    def numbers(self) -> int:
        """How many numbers all tensors have."""
        return sum(count(one.shape) for one in self.tensors.values())

    def digest(self) -> str:
        """`weights_digest` of the tensors, which are seen to be finite. Raises UserError where one is not.

        Cost: one reading of the file, about 2 s a GiB, and a few MB.
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
        """Raises UserError where names, shapes or types are not those of a network's state; its tensors may hold no numbers."""
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
    """The header of a safetensors file, checked. Raises UserError where it is none, or asks for more than the limits."""
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(0)
            if size > limits.weights:
                raise UserError(f"{path} has {size:,} bytes, expected at most {limits.weights:,}")
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or not 2 <= length <= size - 8:
                raise UserError(f"{path} is not a readable safetensors file: it is truncated, or another kind of file")
            if length > limits.header:
                raise UserError(f"{path}: its header has {length:,} bytes, expected at most {limits.header:,}")
            text = handle.read(length).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    within = limits.model_copy(update={"text": limits.header, "entries": 16 * limits.tensors + 1000})
    header = json_of(text, f"{path}: its header", within)
    if not isinstance(header, dict):
        raise UserError(f"{path}: its header is not a mapping")
    header.pop("__metadata__", None)
    if len(header) > limits.tensors:
        raise UserError(f"{path} holds {len(header):,} tensors, expected at most {limits.tensors:,}")
    tensors = {name: _stored(path, name, said, 8 + length) for name, said in header.items()}
    end = 8 + length
    for name, one in sorted(tensors.items(), key=lambda pair: (pair[1].begin, pair[1].size)):
        if one.begin != end:
            raise UserError(f"{path}: tensor {name[:80]!r} does not begin where the one before it ends")
        end += one.size
    if end != size:
        raise UserError(f"{path} is not a readable safetensors file: it has {size:,} bytes, its header tells of {end:,}")
    return WeightsFile(path, tensors)


def _stored(path: Path, name: str, said: Any, start: int) -> Stored:
    """A tensor's row of the header. Raises UserError."""
    shape, ends = (_whole(said.get(key) if isinstance(said, dict) else None) for key in ("shape", "data_offsets"))
    kind = str(said.get("dtype")) if isinstance(said, dict) else ""
    if shape is None or ends is None or len(shape) > 16 or len(ends) != 2 or kind not in TYPES:
        raise UserError(f"{path}: its header says nothing sound of tensor {name[:80]!r}: {str(said)[:80]}")
    dtype, size = TYPES[kind], ends[1] - ends[0]
    if count(shape) * dtype.itemsize != size:
        raise UserError(f"{path}: tensor {name[:80]!r} of shape {shape} has {size:,} bytes")
    return Stored(dtype, shape, start + ends[0], size)


def count(shape: tuple[int, ...]) -> int:
    """How many numbers a tensor of this shape has."""
    return math.prod(shape)


def _whole(value: Any) -> tuple[int, ...] | None:
    """A list of whole numbers from 0, of a size that a file may have; None for anything else."""
    fine = isinstance(value, list) and all(type(one) is int and 0 <= one < 2**48 for one in value)
    return tuple(value) if fine else None


def _pieces(handle: BinaryIO, one: Stored) -> Any:
    """A tensor's bytes, some at a time."""
    handle.seek(one.begin)
    left = one.size
    while left:
        piece = bytearray(handle.read(min(PIECE, left)))
        if not piece:
            raise UserError("the file became shorter while it was read")
        left -= len(piece)
        yield piece
