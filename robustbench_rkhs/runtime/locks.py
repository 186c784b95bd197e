"""Exclusive use of a folder: a lock file next to it names its process; stale locks are taken over."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.files import Unwritable

SILENT = 600.0
"""Seconds without a refresh (one per minute) after which a lock of another machine counts as stale."""


class InUse(UserError):
    """Another process works in the folder."""


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Context manager: exclusive use of the folder for the task `what`. Raises InUse naming the process that holds it.

    The lock is `.NAME.lock` next to the folder, with pid, machine and start time. On the same machine the kernel releases it
    when the process ends; a lock of another machine is judged by its age.
    """
    path = folder.parent / f".{folder.name}.lock"
    try:
        handle = _attempt(path, what)
    except OSError as error:
        raise Unwritable(f"cannot write {folder}, nor its lock {path}: {error.strerror}") from None
    if isinstance(handle, dict):
        who = f"process {handle.get('pid', '?')} on {handle.get('host', '?')} since {handle.get('since', '?')}"
        line = f"{folder} is in use by {who} ({handle.get('what', what)}): wait for it, end it, or choose another folder"
        raise InUse(line)
    claim = Claim(path, handle)
    try:
        yield
    finally:
        claim.release()


class Claim:
    """A lock that this process holds until it is released or the process ends."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle, self._stop = path, handle, threading.Event()
        threading.Thread(target=_refresh, args=(path, self._stop), daemon=True).start()

    def release(self) -> None:
        """Give the lock up."""
        self._stop.set()
        self.path.unlink(missing_ok=True)
        os.close(self._handle)


def claimed(path: Path, what: str) -> Claim | None:
    """The lock at PATH, or None where another process holds it. Raises OSError where it cannot be written."""
    handle = _attempt(path, what)
    return None if isinstance(handle, dict) else Claim(path, handle)


def _attempt(path: Path, what: str) -> int | dict[str, Any]:
    """The open file of the lock, once acquired; else what is known of the process that holds it. Raises OSError."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        held, known = False, True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        except OSError:  # a file system without locks
            known = False
        owner = _owner(handle)
        if held or _works(owner, path, known):
            os.close(handle)
            return owner
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            _sign(handle, what)
            return handle
        os.close(handle)  # its owner has just removed it


def _works(owner: dict[str, Any], path: Path, known: bool) -> bool:
    """Whether the owner of an unlocked lock file may still be running. `known`: the file system supports locks."""
    if not owner:
        return False
    if owner.get("host") == socket.gethostname():
        return not known and owner.get("pid") != os.getpid() and Path(f"/proc/{owner.get('pid')}").exists()
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime < SILENT
    return False


def _owner(handle: int) -> dict[str, Any]:
    """The contents of the lock file; empty if it is new or incomplete."""
    try:
        found = json.loads(os.pread(handle, 10_000, 0) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _sign(handle: int, what: str) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds"), "what": what}
    with contextlib.suppress(OSError):  # on a full disk the kernel's lock still holds
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)


def _refresh(path: Path, stop: threading.Event) -> None:
    """Refresh the lock every minute, so that other machines see this process is alive."""
    while not stop.wait(60):
        try:
            os.utime(path)
        except OSError:
            return
