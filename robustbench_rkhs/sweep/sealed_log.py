"""Optuna's journal of a sweep in which every entry carries the sha256 of its own content."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.runtime.seals import Damaged


class SealedLog(JournalFileBackend):
    """The journal's file, one JSON object per line. Older entries without seals are read unchanged.

    A full disk raises one clear line; half a line at the end is dropped when the file is opened next.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries and sync them to the disk."""
        try:
            super().append_logs([{**log, "seal": _seal(log)} for log in logs])
        except OSError as error:
            raise Unwritable(f"cannot write {self._file_path}: {error.strerror}") from None

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
