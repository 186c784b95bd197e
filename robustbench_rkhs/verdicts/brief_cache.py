"""The cache of briefs: each table is read and summed up once, however often a board is made."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.runtime.ignored import ignored
from robustbench_rkhs.verdicts.brief_index import BriefIndex, signature
from robustbench_rkhs.verdicts.briefs import Brief
from robustbench_rkhs.verdicts.remembered import forgetting
from robustbench_rkhs.verdicts.soundness import pooled
from robustbench_rkhs.verdicts.store import check_name, read, table_paths

MANY = 20
"""Tables of a folder from which an index of them is kept."""
Look = tuple[list[Path], BriefIndex | None]
"""The tables of a folder, and the index of them."""
HELD: dict[str, dict[str, Brief]] = {}
"""What this process has read already, by folder and digest: a submission reads the board for its check, then for its report."""


class BriefCache:
    """Briefs by the digest of their table's file, as sealed records in FOLDER; without a folder they are made anew each time.

    A record that is damaged, or was made by other code, is made again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._held = HELD.setdefault(str(folder), {}) if folder else {}
        self.meets: Callable[[], None] | None = None
        """Where given, called before a table is summed up of which nothing is known."""
        self.holding = 0
        """Of so many tables that are summed up from now on the brief holds the table: whoever needs it need not read it again."""
        self._looked: dict[Path, Look] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the folder alone, not what was read."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def read_all(self, folder: Path, unread: Callable[[str], None]) -> list[Brief]:
        """The brief of every table under a folder, by path; `unread` is called for each file that cannot be read or summed up.

        Cost: 0.3 ms for a table that is as it was, and 1 ms and the digest of its file where there are few; else as `read`.
        """
        paths, index = self._looked.pop(folder) if folder in self._looked else self._look(folder)
        found = list[Brief]()
        for path in paths:
            try:
                found.append(self.read(path) if index is None else self._indexed(path, index))
            except UserError as error:
                unread(str(error))
        if index is not None:
            with suppress(Unwritable):  # what only reads needs no index
                index.write()
        return found

    def unknown(self, folder: Path) -> int:
        """About how many tables of a folder are to be summed up: all but those of its index, or the records that there are.

        The next `read_all` of this folder reads what was found.
        """
        paths, index = self._looked[folder] = self._look(folder)
        if self.folder is None:
            return len(paths)
        indexed = len(index.stored) if index is not None else 0
        return max(len(paths) - (indexed if indexed >= len(paths) else max(indexed, self._records())), 0)

    def _records(self) -> int:
        """How many records there are, if today's code made the first."""
        records = sorted(path for path in (self.folder or Path()).glob("*.json") if not path.name.startswith("index-"))
        try:
            of_today = bool(records) and seals.read_record(records[0], required=True)["code"] == code_digest()
        except (UserError, KeyError, TypeError):
            of_today = False
        return len(records) if of_today else 0

    def read(self, path: Path) -> Brief:
        """The brief of a file. Raises UserError where it is missing, damaged, foreign or not a table of verdicts.

        Cost: the digest of the file, and 1 ms; at first that of reading the table.
        """
        return self._read(path)[1]

    def _look(self, folder: Path) -> Look:
        """The tables of a folder, and their index where there are many."""
        paths = table_paths(folder)
        if self.folder is None or len(paths) < MANY:
            return paths, None
        where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        return paths, BriefIndex.read(self.folder / f"index-{where}.json", code_digest())

    def _indexed(self, path: Path, index: BriefIndex) -> Brief:
        if (known := index.take(path)) is not None:
            check_name(known[1].about, path)
            self._held.setdefault(*known)
            return known[1]
        try:
            file = signature(path)
        except OSError:
            file = []  # said below
        key, found = self._read(path)
        index.note(path, file, key, found)
        return found

    def _read(self, path: Path) -> tuple[str, Brief]:
        try:
            key = seals.seal_of(path) or seals.sha256_of(path)
        except seals.Damaged as damaged:
            raise UserError(f"cannot read verdicts {damaged}") from None
        except OSError as error:
            raise UserError(f"cannot read verdicts {path}: {error.strerror or reason(error)}") from None
        known = self._known(key, path)
        if known is None:
            table = read(path)
            if self.meets is not None:
                self.meets()
            if self.holding > 0:
                known = self._keep(key, Brief.of(table))
                self.holding -= 1
            else:
                with forgetting():
                    known = self._keep(key, replace(Brief.of(table), held=None))
        check_name(known.about, path)
        return key, known

    def pooled(self, one: Brief, kin: Sequence[Brief]) -> Brief:
        """The brief of a table with the adversarial images of its kin (`verdicts.pooled`). Raises UserError as `read` does."""
        others = [other for other in kin if other is not one]
        if not others:
            return one
        key = hashlib.sha256(" ".join([one.content, *sorted(other.content for other in others)]).encode()).hexdigest()
        known = self._known(key, one.path)
        if known is not None:
            return known
        with forgetting():
            whole = one.evaluation()
            judged = pooled(whole, [other.evaluation() for other in others])
            return one if judged is whole else self._keep(key, Brief.of(judged))

    def _known(self, key: str, path: Path | None) -> Brief | None:
        if self.folder is None or path is None:
            return None
        if key in self._held:
            return replace(self._held[key], path=path)
        try:
            record = seals.read_record(self.folder / f"{key}.json", required=True)
            known = Brief.read(record, path) if record["code"] == code_digest() else None
        except (UserError, KeyError, TypeError, ValueError):
            return None
        if known is not None:
            self._held[key] = known
        return known

    def _keep(self, key: str, brief: Brief) -> Brief:
        if self.folder is not None and brief.path is not None:
            record = {"code": code_digest(), **brief.plain()}
            seals.write_record(ignored(self.folder) / f"{key}.json", record, indent=None, durable=False)
        return brief


@cache
def code_digest() -> str:
    """sha256 over the source files of this room, on which briefs depend."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()
