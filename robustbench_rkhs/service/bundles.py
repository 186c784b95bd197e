"""What was sent, as files: each bundle lies in a folder named by its digest, so that the same bundle is kept once."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from robustbench_rkhs.runtime.files import flush
from robustbench_rkhs.service.settings import Sent, Settings


@dataclass(frozen=True)
class Bundle:
    """Files that were sent: a folder that bears the model's name, a file of adversarial images, or a bundle's folder."""

    kind: Sent
    name: str
    path: Path
    """The folder, or the file."""
    sender: str = ""
    """sha256 of the key that signed them, once that was checked."""

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.path.rglob("*") if not path.is_dir()) if self.path.is_dir() else [self.path]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def digest(self) -> str:
        """sha256 over kind, name, and the names and contents of all files."""
        parts = [self.kind, self.name if self.kind == "checkpoint" else ""]
        for file in self.files:
            name = file.relative_to(self.path).as_posix() if self.path.is_dir() else ""
            with file.open("rb") as opened:
                parts += [name, hashlib.file_digest(opened, "sha256").hexdigest()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def incoming(settings: Settings) -> Iterator[Path]:
    """Context manager: an empty folder for one upload, removed at the end with all that is still in it."""
    settings.incoming.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=settings.incoming))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep(settings: Settings, bundle: Bundle, digest: str) -> None:
    """Move a checked bundle to its place, all or nothing; one that is there already stays."""
    place = settings.bundles / digest
    settings.bundles.mkdir(parents=True, exist_ok=True)
    for file in bundle.files:
        flush(file)
    holder = bundle.path.parent / ".kept"
    holder.mkdir()
    os.replace(bundle.path, holder / bundle.path.name)
    try:
        os.rename(holder, place)
    except OSError:
        if not place.is_dir():
            raise
    flush(settings.bundles)


def kept(settings: Settings, digest: str) -> Path:
    """The folder or file of a bundle that was kept."""
    (found,) = (settings.bundles / digest).iterdir()
    return found


def remove_leftovers(settings: Settings) -> None:
    """Remove uploads that a stopped server left half-way. Only for its start: no upload is under way then."""
    shutil.rmtree(settings.incoming, ignore_errors=True)
