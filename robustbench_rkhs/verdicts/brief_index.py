"""The index of a folder's tables: which file held which brief when it was last read, so that what is known is not read again."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.runtime.ignored import ignored
from robustbench_rkhs.verdicts.briefs import Brief

SETTLED = 2.0
"""Seconds since the last change of a file from which its times tell it from a later one, on any file system."""
FEW = 200
"""Changed tables, one in so many, for which an index is not written again: for 1,000 tables that takes 0.1 s."""


@dataclass
class BriefIndex:
    """Briefs by the path of their table, with its size, times and inode; one sealed record.

    A file whose size, times of change (of content and of attributes, which nobody sets) or inode are others is read anew, and so
    is one that changed within two seconds before it was noted. A record that is damaged, or was made by other code, is empty.
    """

    path: Path
    code: str
    """Digest of the code that briefs depend on."""
    stored: dict[str, Any] = field(default_factory=dict)
    noted: dict[str, Any] = field(default_factory=dict)
    """What the next record holds."""

    @classmethod
    def read(cls, path: Path, code: str) -> "BriefIndex":
        """From its record. Cost: 0.1 ms per table of 10,000 images."""
        try:
            record = seals.read_record(path, required=True)
            stored = record["tables"] if record["code"] == code else {}
            return cls(path, code, dict(stored))
        except (UserError, KeyError, TypeError, ValueError):
            return cls(path, code)

    def take(self, path: Path) -> tuple[str, Brief] | None:
        """The digest and the brief of a file that is as it was; None for another."""
        try:
            entry = self.stored[str(path)]
            if entry["file"] != signature(path):
                return None
            found = str(entry["digest"]), Brief.read(entry["brief"], path)
        except (OSError, UserError, KeyError, TypeError, ValueError):
            return None
        self.noted[str(path)] = entry
        return found

    def note(self, path: Path, file: list[int], digest: str, brief: Brief) -> None:
        """A file, whose signature before it was read is `file`, holds this brief."""
        if file and time.time() - max(file[1:3]) / 1e9 > SETTLED:
            self.noted[str(path)] = {"file": file, "digest": digest, "brief": brief.plain()}

    def write(self) -> None:
        """Write what was taken and noted, unless it is what is stored but for a few, whose own records are read the next time."""
        changed = sum(1 for one, entry in self.noted.items() if self.stored.get(one) is not entry)
        gone = sum(1 for one in self.stored if one not in self.noted)
        if FEW * max(changed, gone) > len(self.noted):
            record = {"code": self.code, "tables": self.noted}
            seals.write_record(ignored(self.path.parent) / self.path.name, record, indent=None, durable=False)


def signature(path: Path) -> list[int]:
    """Size, times of change in nanoseconds, and inode of a file. Raises OSError."""
    said = os.stat(path)
    return [said.st_size, said.st_mtime_ns, said.st_ctime_ns, said.st_ino]
