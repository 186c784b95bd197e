"""Atomic writes: a file is either complete or absent."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason as reason_of

ENDING = ".part"
"""Suffix of temporary files."""


class Unwritable(UserError):
    """A file could not be written because of the disk or its permissions."""


def write_whole(path: Path, write: Callable[[Path], object], durable: bool = False) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it: no reader ever sees half a file.

    `durable`: file and folder are on the disk before and after the rename, so that it survives a power cut (about 20 ms).
    Raises Unwritable if the disk is full or writing is not permitted, and leaves nothing behind.
    """
    temporary, handle = None, -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent.resolve())
        handle, temporary = _begun(path)
        write(temporary)
        os.chmod(temporary, 0o644)
        if durable:
            flush(temporary)
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError on a full disk
        if isinstance(error, OSError):
            reason = error.strerror or reason_of(error)
        else:
            reason = reason_of(error)
        raise Unwritable(f"cannot write {path}: {reason}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if handle >= 0:
            os.close(handle)


def _begun(path: Path) -> tuple[int, Path]:
    """A temporary file next to `path`, locked while its handle is open so that other processes see it is in use."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix + ENDING, dir=path.parent)
        _lock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another process removed it as abandoned before it was locked


@cache
def remove_abandoned(folder: Path) -> None:
    """Remove temporary files whose writer was killed, as nobody holds their lock. Once per folder and process."""
    for path in folder.glob(f".*{ENDING}"):
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Context manager for a read and the write that follows from it: waits until no other process or thread is in one of its own
    in this folder, which is made if need be.

    The lock is on FOLDER/.lock, which is gone afterwards; the kernel releases it when the process ends. A file system without
    locks gives none. Raises Unwritable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(folder / ".lock")  # on NFS a folder can't be locked
    except OSError as error:
        raise Unwritable(f"cannot use {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / ".lock").unlink()
        os.close(handle)


def _locked(path: Path) -> int:
    """The open file at PATH, once this process has its lock, or where there are no locks."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _lock(handle, fcntl.LOCK_EX):
            return handle
        try:
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # whoever had the lock has removed the file


def _lock(handle: int, how: int) -> bool:
    """Whether the lock was acquired; False if another process holds it, or the file system has no locks."""
    try:
        fcntl.flock(handle, how)
    except OSError:
        return False
    return True


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_whole(path, lambda temporary: temporary.write_text(text))
