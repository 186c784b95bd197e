"""Atomic writes: a file is either complete or absent."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason as reason_of


class Unwritable(UserError):
    """A file could not be written: the disk or its permissions, not what was asked for."""


def write_whole(path: Path, write: Callable[[Path], object], durable: bool = False) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: no reader ever sees half a file.

    `durable`: file and folder are on the disk before and after the rename, so that it survives a power cut (about 20 ms).
    Raises Unwritable where the disk is full or writing is not permitted; then nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix + ".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        os.chmod(temporary, 0o644)
        if durable:
            flush(temporary)
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save and safetensors report a full disk as RuntimeError
        if isinstance(error, OSError):
            reason = error.strerror or reason_of(error)
        else:
            reason = reason_of(error)
        raise Unwritable(f"cannot write {path}: {reason}") from None
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or absent."""
    write_whole(path, lambda temporary: temporary.write_text(text))
