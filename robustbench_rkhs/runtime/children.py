"""Child processes for untrusted work: limited in memory and time, and ended with their parent."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import PACKAGE
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.sinks import for_line

BEGIN = (
    "import sys\n"
    "if sys.platform == 'linux': import ctypes; ctypes.CDLL(None).prctl(1, 9)\n"
    "import runpy; runpy.run_module(sys.argv[1], run_name='__main__', alter_sys=True)"
)
"""Start-up code of the child: it dies with its parent even during imports (PR_SET_PDEATHSIG, SIGKILL)."""
LONGEST = 1 << 20
"""Most bytes of a message from the child."""


class WorkerKilled(Exception):
    """Work that was given up, since the processes that tried it were killed; in one line.

    The command line prints it and exits with code 1; where an evaluation goes on without that work, with code 3.
    """


def end_with(parent: int) -> None:
    """End this process when its parent ends, for whatever reason: by the kernel on Linux, and by a check once per second."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def as_worker(parent: int) -> None:
    """The start of a worker: it ends with its parent, and ignores Ctrl-C, which interrupts the parent alone."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def keyboard_held() -> Iterator[None]:
    """Context manager in which workers are started: Ctrl-C waits until its end, and reaches no worker before `as_worker`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def confine(limits: Limits, memory: bool = True) -> None:
    """Set this process's limits on memory and CPU time. `memory` False sets no memory limit, for accelerators, whose drivers
    reserve far more address space than memory."""
    seconds = int(limits.seconds * limits.threads) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))


def messages(module: str, job: Mapping[str, Any], limits: Limits) -> Iterator[dict[str, Any]]:
    """Run `python -m module` on this job and yield the JSON objects that it prints, one per line.

    The job is passed on standard input, with `parent`, the id of this process. The child is killed when the generator is closed
    or after `limits.seconds`. Raises UserError if it was killed or failed.
    """
    threads = str(min(limits.threads, os.cpu_count() or 1))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": _search_path()}
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
        given.write(json.dumps({**job, "parent": os.getpid()}).encode())
        given.seek(0)
        words = [sys.executable, "-P", "-c", BEGIN, module]
        child = subprocess.Popen(words, stdin=given, stdout=subprocess.PIPE, stderr=errors, env=environment)
        overtime = threading.Event()

        def end() -> None:
            overtime.set()
            child.kill()

        timer = threading.Timer(limits.seconds, end)
        timer.daemon = True
        timer.start()
        try:
            assert child.stdout is not None
            while line := child.stdout.readline(LONGEST):
                yield _message(line)
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()
            child.wait()
        if code:
            errors.seek(max(errors.seek(0, 2) - 2000, 0))
            raise UserError(_ending(code, overtime.is_set(), errors.read().decode(errors="replace"), limits))


def _message(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"the evaluating process sent an invalid message: {reason(error)}") from None
    return dict(found) if isinstance(found, dict) else {}


def _ending(code: int, overtime: bool, errors: str, limits: Limits) -> str:
    """A line that says why a child ended."""
    last = for_line(next((line for line in reversed(errors.splitlines()) if line.strip()), "no output"))[:300]
    if overtime or code == -signal.SIGXCPU:
        cores = f"{limits.threads} thread{'s' * (limits.threads > 1)}"
        return f"it took longer than {limits.seconds:g} s on {cores} (--limits seconds=..., threads=...)"
    if "memory" in last.lower() or code == -signal.SIGKILL or "bad_alloc" in last:
        return f"it needs more memory than {limits.memory / 2**30:.3g} GiB, or than there is (--limits memory=...): {last}"
    return f"the evaluating process ended with code {code}: {last}"


def _search_path() -> str:
    """The module search path of this process, without relative entries such as the working directory."""
    return os.pathsep.join(dict.fromkeys([str(Path(PACKAGE).parent), *(place for place in sys.path if Path(place).is_absolute())]))


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
