"""The record of what was drawn from what, so that a report makes again only files whose inputs changed."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.seals import read_record, write_record

NAME = "drawn.json"
MANY = 200
"""Entries from which the record is written on one line, ten times as quickly."""
ROOMS = ("reports", "verdicts", "runtime/sinks.py", "nodes/radius_text.py")
"""The source files that decide what a figure or table looks like."""


class Drawn:
    """FOLDER/drawn.json: by kind and name, the digest of the inputs and the files made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            stored = read_record(folder / NAME, required=True)
        except UserError:  # none yet, or damaged: everything is made again
            stored = {}
        self._before: dict[str, Any] = {key: one for key, one in stored.items() if isinstance(one, dict)}
        self._now: dict[str, Any] = {}
        self._there: dict[str, set[str]] = {}

    def once(self, kind: str, stem: Path, inputs: Sequence[str], make: Callable[[Path], list[Path]]) -> list[Path]:
        """The files that `make` writes at this stem; made again only where inputs or code changed.

        inputs: digests and settings that decide their content.
        """
        paths = self.known(kind, stem, inputs)
        return self.keep(kind, stem, inputs, make(stem)) if paths is None else paths

    def known(self, kind: str, stem: Path, inputs: Sequence[str]) -> list[Path] | None:
        """The files that were made of these inputs, which stay; None where they are to be made (again)."""
        before = self._before.get(key := self._key(kind, stem), {})
        names = [str(name) for name in before.get("files", [])]
        if before.get("inputs") != _digest(kind, inputs) or not names or not all(map(self._is_there, names)):
            return None
        self._now[key] = before
        return [self.folder / name for name in names]

    def _is_there(self, name: str) -> bool:
        """Whether a file was there when its folder was first looked at: a listing takes less than a look at each."""
        parent, _, own = name.rpartition("/")
        if parent not in self._there:
            try:
                with os.scandir(self.folder / parent) as found:
                    self._there[parent] = {one.name for one in found if one.is_file()}
            except OSError:
                self._there[parent] = set()
        return own in self._there[parent]

    def keep(self, kind: str, stem: Path, inputs: Sequence[str], paths: list[Path]) -> list[Path]:
        """Record files that were made of these inputs."""
        files = [path.relative_to(self.folder).as_posix() for path in paths]
        self._now[self._key(kind, stem)] = {"inputs": _digest(kind, inputs), "files": files}
        return paths

    def _key(self, kind: str, stem: Path) -> str:
        return f"{kind}:{stem.relative_to(self.folder).as_posix()}"

    def save(self, others: bool) -> None:
        """Write the record. `others`: whether what was not asked for this time stays; else its files are removed, too."""
        found = {**self._before, **self._now} if others else self._now
        kept = {str(name) for one in found.values() for name in one["files"]}
        for one in self._before.values():
            for name in {*map(str, one.get("files", []))} - kept:
                if (path := self.folder / name).resolve().is_relative_to(self.folder.resolve()):
                    path.unlink(missing_ok=True)
        if found != self._before:
            write_record(self.folder / NAME, found, indent=1 if len(found) < MANY else None, durable=False)


def _digest(kind: str, inputs: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([kind, code_digest(), *inputs]).encode()).hexdigest()


@cache
def code_digest() -> str:
    """sha256 over the source files that draw."""
    sha, package = hashlib.sha256(), Path(__file__).parent.parent
    for room in ROOMS:
        place = package / room
        for path in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            sha.update(path.read_bytes())
    return sha.hexdigest()
