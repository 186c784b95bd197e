"""The processes that a process started, on Linux, and whether they have ended."""

import time
from pathlib import Path


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    try:
        own = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    except OSError:  # it has ended
        return []
    return [*own, *(one for child in own for one in below(child))]


def still_there(pids: list[int], patience: float) -> list[int]:
    """Those of these processes that did not end in time."""
    until = time.monotonic() + patience
    while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def runs(pid: int) -> bool:
    """Whether there is this process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
