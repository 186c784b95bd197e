"""An object store by fsspec URL: files are put and fetched whole, and a claim is a file that only one process can create."""

import importlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.extras import require
from robustbench_rkhs.runtime.files import Unwritable, write_whole
from robustbench_rkhs.runtime.locks import SILENT

WHOLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Protocols by which a file appears whole or not at all, and can be created on the condition that it is not there."""
REFRESH = 60.0
"""Seconds between two refreshes of a claim."""


class ObjectStore:
    """Files below one URL. Raises Unwritable, in one line, wherever the store cannot be reached."""

    def __init__(self, url: str) -> None:
        """Raises UserError for a protocol that does not put files whole, or whose package is not installed."""
        require("fsspec", "remote", url)
        kind, _, _ = url.partition("://")
        if kind not in WHOLE or "::" in url:
            line = f"{url}: expected a URL of {', '.join(WHOLE)}, where a file appears whole or not at all"
            raise UserError(f"{line}; a disk that several machines share is a folder, not a URL")
        self.url, fsspec = url.rstrip("/"), importlib.import_module("fsspec")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"{url}: {reason(error)}") from None

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; none where it is not there."""
        try:
            return sorted(path.rpartition("/")[2] for path in self._fs.ls(f"{self._root}/{folder}", detail=False))
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unreachable("list", folder, error) from None

    def put(self, path: Path, name: str) -> None:
        """Store a file, in place of one of that name."""
        try:
            self._fs.pipe_file(f"{self._root}/{name}", path.read_bytes())
        except Exception as error:
            raise self._unreachable("write", name, error) from None

    def fetch(self, name: str, path: Path) -> bool:
        """Copy a file to PATH, whole; whether it is there."""
        try:
            found = self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._unreachable("read", name, error) from None
        write_whole(path, lambda temporary: temporary.write_bytes(found))
        return True

    def claimed(self, name: str) -> "RemoteClaim | None":
        """The claim of this name, or None where another process holds it.

        One whose holder was silent for ten minutes is taken over. In the rare race of two that take it over at once both may hold
        it: a claim saves work, and nothing that is stored depends on it.
        """
        for _ in range(2):
            try:
                self._fs.pipe_file(f"{self._root}/{name}", _signed(), mode="create")
                return RemoteClaim(self, name)
            except FileExistsError:
                pass
            except Exception as error:
                raise self._unreachable("write", name, error) from None
            if not self._silent(name):
                return None
            self.remove(name)
        return None

    def refresh(self, name: str) -> None:
        """Say that the holder of a claim still works."""
        self._fs.pipe_file(f"{self._root}/{name}", _signed())

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._fs.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._unreachable("remove", name, error) from None

    def _silent(self, name: str) -> bool:
        try:
            said = json.loads(self._fs.cat_file(f"{self._root}/{name}"))
            return time.time() - float(said["time"]) > SILENT
        except FileNotFoundError:
            return True  # given up a moment ago
        except (ValueError, KeyError, TypeError):
            return False
        except Exception as error:
            raise self._unreachable("read", name, error) from None

    def _unreachable(self, what: str, name: str, error: Exception) -> Unwritable:
        return Unwritable(f"cannot {what} {self.url}/{name}: {reason(error) or type(error).__name__}")


class RemoteClaim:
    """A claim that this process holds until it is released; refreshed every minute."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self.store, self.name, self._stop = store, name, threading.Event()
        threading.Thread(target=self._refresh, daemon=True).start()

    def release(self) -> None:
        """Give the claim up."""
        self._stop.set()
        self.store.remove(self.name)

    def _refresh(self) -> None:
        while not self._stop.wait(REFRESH):
            try:
                self.store.refresh(self.name)
            except Exception:  # whatever a client raises: the claim then counts as left behind
                continue


def _signed() -> bytes:
    said: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
    return json.dumps(said).encode()
