"""The header of an untrusted safetensors file: which tensors it says to hold, and where its bytes begin. It needs no PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.documents import json_of
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError


@dataclass(frozen=True)
class WeightsHeader:
    """What the header says, not believed yet."""

    tensors: Mapping[str, Any]
    """By name, what is said of each tensor."""
    end: int
    """Bytes of the file before the first tensor."""
    size: int
    """Bytes of the whole file."""


def weights_header(path: Path, limits: Limits = STRANGERS) -> WeightsHeader:
    """Read the header of a safetensors file. Raises UserError if there is none, or it exceeds the limits."""
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
    return WeightsHeader(header, 8 + length, size)
