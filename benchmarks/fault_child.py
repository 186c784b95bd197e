"""A command in a child process: how it ended, what it printed, what time and memory it took; a signal midway where asked for.

Most children are forks of this process, which holds everything imported, and so start in milliseconds; `typed` ones are new
interpreters, as a user's shell starts them.
"""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

POLL = 0.002
"""Seconds between two looks at a running child."""
TRACEBACK = "Traceback (most recent call last)"
UNFORESEEN = 70
"""Exit code of a child whose function raised."""
GRACE = 60.0
"""Seconds that a command may take to end after a signal that it can catch; then it is killed, and `late`."""
PEAK = "peak resident KiB: "
TYPED = f"""
import importlib, resource, sys
try:
    importlib.import_module(sys.argv.pop(1)).main()
finally:
    own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    peak = max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    sys.stderr.write(f"{PEAK}{{peak}}\\n")
"""
"""A console script in an interpreter of its own. It says its own peak: what wait4 tells includes this process's before exec."""


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int | None
    """Exit code; None where it was killed or ran past its time."""
    late: bool
    """It ran past its time, or past `GRACE` after a signal, and was killed for it."""
    said: str
    """stdout and stderr together."""
    seconds: float
    cpu: float
    memory: int
    """Peak resident bytes: of a fork above what the parent held, of a typed command all."""
    orphans: int
    """Processes of its session that outlived it by two seconds; they are ended here."""

    @property
    def traceback(self) -> bool:
        return TRACEBACK in self.said or self.code == UNFORESEEN


def command(words: Sequence[str]) -> Callable[[], None]:
    """A console script (`eval`, `train` ...) with its arguments, to be run in a child."""

    def run() -> None:
        sys.argv = [f"rkhs-{words[0]}", *words[1:]]
        import_module(module_of(words)).main()

    return run


def typed(words: Sequence[str]) -> Callable[[], None]:
    """The same in a new interpreter, as a shell starts it."""

    def run() -> None:
        os.execv(sys.executable, [sys.executable, "-c", TYPED, module_of(words), *words[1:]])

    return run


def module_of(words: Sequence[str]) -> str:
    """The module of a console script."""
    return f"robustbench_rkhs.cli.{'evaluate' if words[0] == 'eval' else words[0]}"


def child(
    run: Callable[[], None], folder: Path, limit: float, after: float | None = None, how: signal.Signals = signal.SIGKILL
) -> Ended:
    """Run a function in a fork whose working directory is `folder`; the signal `how` after `after` seconds, SIGKILL at `limit`."""
    with tempfile.TemporaryFile() as said:
        started, held = time.monotonic(), _resident()
        pid = os.fork()
        if pid == 0:
            _inside(run, folder, said.fileno())
        until, next_signal, late = started + limit, signal.SIGKILL, True
        if after is not None and after < limit:
            until, next_signal, late = started + after, how, False
        while True:
            found, status, used = os.wait4(pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() <= until:
                time.sleep(POLL)
                continue
            os.kill(pid, next_signal)
            if next_signal == signal.SIGKILL:
                found, status, used = os.wait4(pid, 0)
                break
            until, next_signal, late = time.monotonic() + GRACE, signal.SIGKILL, True
        took = time.monotonic() - started
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        said.seek(0)
        words, _, peak = said.read().decode(errors="replace").partition(PEAK)
        memory = int(peak) * 1024 if peak.strip().isdecimal() else max(used.ru_maxrss * 1024 - held, 0)
        late = late and code is None and os.WTERMSIG(status) == signal.SIGKILL
        return Ended(code, late, words, took, used.ru_utime + used.ru_stime, memory, _end_orphans(pid))


def _inside(run: Callable[[], None], folder: Path, said: int) -> None:
    """In the child: never returns."""
    code = UNFORESEEN
    try:
        os.setsid()
        _as_nice_as_before()
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
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


def _as_nice_as_before() -> None:
    """A new session is a scheduling group of its own on Linux; its niceness is set apart from the process's."""
    group = Path("/proc/self/autogroup")
    if group.exists():
        with suppress(OSError):
            group.write_text(str(os.nice(0)))


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
