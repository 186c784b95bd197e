"""A folder that one process works in: a lock file beside it says which, and one that its process left behind is taken over."""

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
"""Seconds after which a lock of another machine, which is refreshed every minute, is taken for left behind."""


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """This process alone works in the folder: `what` says at what. Raises UserError, naming who else does.

    The lock is `.NAME.lock` beside the folder, with pid, machine and start time. On one machine the kernel frees it with the
    process, however that ends; of another machine it is known by its age.
    """
    path = folder.parent / f".{folder.name}.lock"
    handle = _taken(path, folder, what)
    stop = threading.Event()
    threading.Thread(target=_refresh, args=(path, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        path.unlink(missing_ok=True)
        os.close(handle)


def _taken(path: Path, folder: Path, what: str) -> int:
    """The open lock file, which is ours now. Raises UserError."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Unwritable(f"cannot write {folder}, nor its lock {path}: {error.strerror}") from None
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
            who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')} since {owner.get('since', '?')}"
            line = (
                f"{folder} is being worked in by {who} ({owner.get('what', what)}): wait for it, end it, or choose another folder"
            )
            raise UserError(line)
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            _sign(handle, what)
            return handle
        os.close(handle)  # its owner removed it a moment ago


def _works(owner: dict[str, Any], path: Path, known: bool) -> bool:
    """Whether the process that a free lock names may still be at work. `known`: the kernel knows the locks of this machine."""
    if not owner:
        return False
    if owner.get("host") == socket.gethostname():
        return not known and owner.get("pid") != os.getpid() and Path(f"/proc/{owner.get('pid')}").exists()
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime < SILENT
    return False


def _owner(handle: int) -> dict[str, Any]:
    """What the lock says; nothing where it is new or torn."""
    try:
        found = json.loads(os.pread(handle, 10_000, 0) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _sign(handle: int, what: str) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds"), "what": what}
    with contextlib.suppress(OSError):  # a full disk: the kernel's lock holds all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)


def _refresh(path: Path, stop: threading.Event) -> None:
    """Show other machines that this process lives."""
    while not stop.wait(60):
        try:
            os.utime(path)
        except OSError:
            return
