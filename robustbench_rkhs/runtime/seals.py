"""Seals: each file contains the sha256 of its own content, which is checked on every read.

A seal is the text `rkhs-seal-sha256:` and 64 digits, the sha256 of the file with zeros in place of the digits. It is stored in the
metadata of parquet and safetensors files, the comment of zip archives (.npz, .pt), a JSON field or a YAML comment. It detects
damage, not forgery: anyone who can write a file can seal it.
"""

import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.files import write_whole

MARK = "rkhs-seal-sha256:"
ZEROS = "0" * 64
BLANK = MARK + ZEROS
"""Placeholder for the seal until the file is sealed."""
CHUNK = 1 << 20


class Damaged(UserError):
    """A file is damaged: its seal is broken or missing, or belongs to another key."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path}: damaged: {fault}")
        self.fault = f"damaged: {fault}"


NO_SEAL = "expected its seal, found none"


class SetAside(UserWarning):
    """Warning: a damaged file was renamed, and its contents will be recomputed."""


def write_sealed(path: Path, write: Callable[[Path], object], durable: bool = True) -> str:
    """Let `write` create a file that contains BLANK once, seal it and move it into place atomically. Returns the seal.

    Raises Unwritable as `write_whole` does. Cost: one read of the file (0.5 GB: about 2 s).
    """
    seals = []

    def both(temporary: Path) -> None:
        write(temporary)
        seals.append(_sealed(temporary))

    write_whole(path, both, durable)
    return seals[0]


def seal_of(path: Path, required: bool = False) -> str:
    """Check the seal of a file and return it; empty if it has none. Raises Damaged if it is broken, or missing but `required`.

    Raises OSError if the file cannot be read.
    """
    with path.open("rb") as handle:
        at = _place(handle)
        if at is None:
            if required:
                raise Damaged(path, NO_SEAL)
            return ""
        handle.seek(at)
        said = handle.read(64).decode("ascii", "replace")
        if not re.fullmatch("[0-9a-f]{64}", said) or said != _digest(handle, at):
            raise Damaged(path, "its content is not what was sealed")
    return said


def write_archive(path: Path, write: Callable[[Path], object], durable: bool = True) -> str:
    """Write a zip archive (.npz, .pt) by `write`, with the seal as its comment."""

    def commented(temporary: Path) -> None:
        write(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = BLANK.encode()

    return write_sealed(path, commented, durable)


def write_record(path: Path, record: Mapping[str, Any], indent: int | None = 2, durable: bool = True) -> str:
    """Write a JSON object with the seal as its last field."""
    text = json.dumps({**record, "seal": BLANK}, indent=indent) + "\n"
    return write_sealed(path, lambda temporary: temporary.write_text(text), durable)


def read_record(path: Path, required: bool = False) -> dict[str, Any]:
    """The JSON object of a record, without its seal. Raises Damaged, or UserError if it is not a JSON object."""
    try:
        seal_of(path, required)
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no file {str(path)!r}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable record: {reason(error)}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a record of named fields, found {type(record).__name__}")
    record.pop("seal", None)
    return record


def write_commented(path: Path, text: str) -> str:
    """Write a text file of a format with `#` comments (YAML), the seal as its last line."""
    return write_sealed(path, lambda temporary: temporary.write_text(f"{text.rstrip()}\n# {BLANK}\n"))


def check_named(path: Path, record: Path) -> None:
    """Raises Damaged if the record's `seals` state another sha256 for a file that cannot contain a seal (JSON lines)."""
    said = read_record(record).get("seals") if record.is_file() else None
    if isinstance(said, dict) and said.get(path.name, digest := sha256_of(path)) != digest:
        raise Damaged(path, f"it is not the file that {record.name} names")


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def unmarked(text: str) -> str:
    """The same JSON text, escaped so that nothing in it looks like a seal."""
    return text.replace(MARK, MARK[:-1] + "\\u003a")


def set_aside(path: Path, why: UserError | str, *beside: Path) -> None:
    """Rename a damaged file, and the files `beside` it, to `.damaged-NAME-NUMBER`, with a SetAside warning.

    Only for files whose contents can be recomputed.
    """
    for one in (path, *beside):
        number = 1
        while (aside := one.with_name(f".damaged-{one.name}-{number}")).exists():
            number += 1
        try:
            one.rename(aside)
        except FileNotFoundError:  # another process was faster
            continue
        if one == path:
            warnings.warn(f"{why}; set aside as {aside.name}, and done again", SetAside, stacklevel=3)


def _sealed(path: Path) -> str:
    with path.open("r+b") as handle:
        at = _place(handle)
        if at is None:
            raise ValueError(f"{path.name} has no place for a seal")
        seal = _digest(handle, at)
        handle.seek(at)
        handle.write(seal.encode())
    return seal


def _place(handle: BinaryIO) -> int | None:
    """Offset of the digits of the seal: the last one near the end of the file, else near its beginning, else anywhere."""
    mark, size = MARK.encode(), handle.seek(0, os.SEEK_END)
    for begin in (max(0, size - CHUNK), 0):
        handle.seek(begin)
        at = handle.read(CHUNK).rfind(mark)
        if at >= 0:
            return begin + at + len(mark)
    found, begin, before = None, 0, b""
    handle.seek(0)
    while chunk := handle.read(CHUNK):
        whole = before + chunk
        at = whole.rfind(mark)
        if at >= 0:
            found = begin - len(before) + at + len(mark)
        begin, before = begin + len(chunk), whole[-len(mark) + 1 :]
    return found


def _digest(handle: BinaryIO, at: int) -> str:
    """sha256 of a file with zeros in place of its seal."""
    sha = hashlib.sha256()
    handle.seek(0)
    left = at
    while left and (chunk := handle.read(min(CHUNK, left))):
        sha.update(chunk)
        left -= len(chunk)
    handle.seek(at + 64)
    sha.update(ZEROS.encode())
    while chunk := handle.read(CHUNK):
        sha.update(chunk)
    return sha.hexdigest()
