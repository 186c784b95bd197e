"""Optuna's journal of a sweep in which every entry carries the sha256 of its own content."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.runtime.seals import Damaged


class SealedLog(JournalFileBackend):
    """The journal's file, one JSON object per line. Older entries without seals are read unchanged.

    A full disk raises one clear line, and leaves no half of an entry.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries and sync them to the disk: all of them, or none."""
        lines = "".join(json.dumps({**log, "seal": _seal(log)}, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            with open(self._file_path, "ab", buffering=0) as file:
                before = file.tell()
                try:
                    if file.write(lines) < len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(before)  # another worker may have room again, and would go on after half a line
                    raise
        except OSError as error:
            raise Unwritable(f"cannot write {self._file_path}: {error.strerror}") from None
        finally:
            self._lock.release()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The entries from this one on. Raises Damaged at an altered one."""
        entries = super().read_logs(log_number_from)
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except (ValueError, RecursionError):
                raise Damaged(Path(self._file_path), "a line is no entry of a journal") from None
            if not isinstance(entry, dict) or entry.pop("seal", None) not in (None, _seal(entry)):
                raise Damaged(Path(self._file_path), "an entry is not what was written")
            yield entry


def _seal(entry: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in entry.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
