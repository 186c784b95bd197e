"""A bundle sent as one file: a zip or tar archive, unpacked without trust: `python -m robustbench_rkhs.submission.archive`.

Only plain files of plain names are written, each once, below an empty folder, and no more bytes than allowed, counted as they are
written. What an archive says of its own sizes is never believed.
"""

import json
import os
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import confine, end_with, messages
from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.submission.bundle_names import MOST, NAME, STATED

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
ENTRIES = 64
"""Most entries of an archive, folders too."""
DEPTH = 3
"""Most names of a path: of the archive's own top folder, of the checkpoint's, and of a file."""
BLOCK = 1 << 20
"""Bytes that are unpacked at a time."""
HOSTED = ("__MACOSX", ".DS_Store")
"""What a system adds to the archives that it makes: left out, as names that begin with `._` are."""
ALONE = Limits(memory=1 << 30, seconds=600.0, threads=1)
"""Of the process that unpacks: a directory of a zip is read into memory as a whole."""
Opened = Callable[[], AbstractContextManager[Any]]
Entry = tuple[str, bool, Opened]
"""Path, whether it is a folder, and what opens its content."""


def unpack_alone(archive: Path, folder: Path, most: int) -> None:
    """As `unpack`, in a process of its own, under limits on memory and time. Raises UserError. Cost: 0.3 s to begin."""
    passed = False
    for message in messages(__name__, {"archive": str(archive), "folder": str(folder), "most": most}, ALONE):
        if "refused" in message:
            raise UserError(str(message["refused"]))
        passed = passed or message.get("passed") is True
    if not passed:
        raise UserError(f"unpacking {archive.name} ended without a result")


def unpack(archive: Path, folder: Path, most: int) -> None:
    """Unpack a bundle into an empty folder, which then holds submission.yaml: a top folder of the archive is left out.

    Raises UserError for an archive that cannot be read, holds more than `most` bytes or ENTRIES entries, a path outside the
    folder, anything but plain files and folders, or a file twice (also by names that differ in case alone).
    """
    with guarded(archive.name):
        found = _Unpacked(folder, most)
        if archive.suffix == ".zip":  # by its name: the end of a small tar may look like the end of a zip in it
            with zipfile.ZipFile(archive) as opened:
                found.take(_of_zip(opened))
        else:
            with tarfile.open(archive, "r|*") as stream:
                found.take(_of_tar(stream))
        found.lift()


class _Unpacked:
    """The folder that is filled."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most, self.left = folder, most, most
        self.seen = set[str]()

    def take(self, entries: Iterator[Entry]) -> None:
        for number, (name, is_folder, opened) in enumerate(entries):
            if number == ENTRIES:
                raise UserError(f"it has more than {ENTRIES} entries")
            parts = _parts(name)
            if not parts or any(part in HOSTED or part.startswith("._") for part in parts):
                continue
            self._check(name, parts, is_folder)
            path = self.folder.joinpath(*parts)
            if is_folder:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write(path, opened)

    def _check(self, name: str, parts: list[str], is_folder: bool) -> None:
        """Raises UserError for a path that may not be written, or is there already."""
        if len(parts) > DEPTH or not all(NAME.fullmatch(part) for part in parts):
            allowed = f"at most {DEPTH} names of letters, digits, _ . - (64 at most)"
            raise UserError(f"the path {for_line(name)[:80]!r}: expected {allowed}")
        folded = "/".join(parts).lower()
        if folded in self.seen and not is_folder:
            raise UserError(f"{for_line(name)[:80]!r} is in it twice, or names that differ in case alone")
        self.seen.add(folded)

    def _write(self, path: Path, opened: Opened) -> None:
        with opened() as source, path.open("xb") as target:
            while block := source.read(BLOCK):
                self.left -= len(block)
                if self.left < 0:
                    raise UserError(f"it unpacks to more than {self.most:,} bytes")
                target.write(block)

    def lift(self) -> None:
        """Leave out a folder that holds everything else."""
        tops = sorted(self.folder.iterdir())
        if (self.folder / STATED).exists() or len(tops) != 1 or not tops[0].is_dir():
            return
        inner = sorted(tops[0].iterdir())
        if len(inner) > MOST or not (tops[0] / STATED).is_file():
            raise UserError(f"no {STATED} in it: pack the folder that rkhs-submit ... --bundle wrote")
        holder = tops[0].rename(self.folder / ".top")
        for one in inner:
            (holder / one.name).rename(self.folder / one.name)
        holder.rmdir()


def _parts(name: str) -> list[str]:
    """The names of a path, without `.` and without the slash at the end of a folder; `..` and an empty first one stay."""
    found = name.rstrip("/").split("/")
    return [part for part in found if part != "."]


def _of_zip(opened: zipfile.ZipFile) -> Iterator[Entry]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
            raise UserError(f"{for_line(info.filename)[:80]!r} is a link, a device or encrypted: expected plain files")
        yield info.filename, info.is_dir(), lambda info=info: opened.open(info)  # type: ignore[misc]


def _of_tar(stream: tarfile.TarFile) -> Iterator[Entry]:
    for info in stream:
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse():
            raise UserError(f"{for_line(info.name)[:80]!r} is a link, a device or sparse: expected plain files")
        yield info.name, info.isdir(), lambda info=info: _content(stream, info)  # type: ignore[misc]


def _content(stream: tarfile.TarFile, info: tarfile.TarInfo) -> AbstractContextManager[Any]:
    found = stream.extractfile(info)
    if found is None:
        raise UserError(f"{for_line(info.name)[:80]!r} has no content")
    return found


if __name__ == "__main__":
    given = json.loads(sys.stdin.buffer.read())
    end_with(int(given["parent"]))
    confine(ALONE)
    try:
        unpack(Path(given["archive"]), Path(given["folder"]), int(given["most"]))
    except UserError as refused:
        told: dict[str, object] = {"refused": str(refused)}
    else:
        told = {"passed": True}
    os.write(1, json.dumps(told).encode() + b"\n")
