"""A command in a forked process: how it ended, what it printed, what time and memory it took; killed midway where asked for."""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

POLL = 0.002
"""Seconds between two looks at a running child."""
TRACEBACK = "Traceback (most recent call last)"
UNFORESEEN = 70
"""Exit code of a child whose function raised."""


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int | None
    """Exit code; None where it was killed or ran past its time."""
    said: str
    """stdout and stderr together."""
    seconds: float
    cpu: float
    memory: int
    """Peak resident bytes above what the parent held when it forked."""
    orphans: int
    """Processes of its session that outlived it by two seconds; they are ended here."""

    @property
    def traceback(self) -> bool:
        return TRACEBACK in self.said or self.code == UNFORESEEN


def command(words: Sequence[str]) -> Callable[[], None]:
    """A console script (`eval`, `train` ...) with its arguments, to be run in a child."""
    module = "evaluate" if words[0] == "eval" else words[0]

    def run() -> None:
        sys.argv = [f"rkhs-{words[0]}", *words[1:]]
        import_module(f"robustbench_rkhs.cli.{module}").main()

    return run


def child(run: Callable[[], None], folder: Path, limit: float, kill: float | None = None) -> Ended:
    """Run a function in a fork whose working directory is `folder`; SIGKILL after `kill` seconds, or at `limit` anyway."""
    with tempfile.TemporaryFile() as said:
        started, held = time.monotonic(), _resident()
        pid = os.fork()
        if pid == 0:
            _inside(run, folder, said.fileno())
        found, status, used = 0, 0, None
        until = started + (limit if kill is None else min(kill, limit))
        while not found:
            found, status, used = os.wait4(pid, os.WNOHANG)
            if not found and time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                found, status, used = os.wait4(pid, 0)
            elif not found:
                time.sleep(POLL)
        took = time.monotonic() - started
        assert used is not None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        said.seek(0)
        words = said.read().decode(errors="replace")
        memory = max(used.ru_maxrss * 1024 - held, 0)
        return Ended(code, words, took, used.ru_utime + used.ru_stime, memory, _end_orphans(pid))


def _inside(run: Callable[[], None], folder: Path, said: int) -> None:
    """In the child: never returns."""
    code = UNFORESEEN
    try:
        os.setsid()
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        run()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else (0 if left.code is None else 1)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _resident() -> int:
    """Bytes this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in ("Z", "X"):
            found.append(int(entry.name))
    return found


def _end_orphans(session: int) -> int:
    until = time.monotonic() + 2.0
    while (left := _members(session)) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)
