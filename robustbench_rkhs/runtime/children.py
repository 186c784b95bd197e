"""A process of its own for work that may not harm this one: bounded in memory and time, and ended with this one."""

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
"""What the child runs first: it ends with its parent also while it still imports (PR_SET_PDEATHSIG, SIGKILL)."""
LONGEST = 1 << 20
"""Bytes of a message of the child's."""


def end_with(parent: int) -> None:
    """End this process when its parent does, however that ends: asked of the kernel on Linux, and looked for once a second."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def confine(limits: Limits, memory: bool = True) -> None:
    """Set this process's limits of memory and of time on its threads; what is beyond them fails. `memory` False leaves that out,
    for accelerators, whose drivers reserve far more addresses than memory."""
    seconds = int(limits.seconds * limits.threads) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))


def messages(module: str, job: Mapping[str, Any], limits: Limits) -> Iterator[dict[str, Any]]:
    """Run `python -m module` on this job and yield the JSON objects that it prints, one a line.

    The job reaches it on its standard input, with `parent`, this process. It is killed where this generator is left, or where it
    takes longer than `limits.seconds`. Raises UserError where it ended otherwise than by itself.
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
        raise UserError(f"the evaluating process said what is no message: {reason(error)}") from None
    return dict(found) if isinstance(found, dict) else {}


def _ending(code: int, overtime: bool, errors: str, limits: Limits) -> str:
    """Why a child ended, in a line."""
    last = for_line(next((line for line in reversed(errors.splitlines()) if line.strip()), "it said nothing"))[:300]
    if overtime or code == -signal.SIGXCPU:
        return f"it took longer than {limits.seconds:g} s on {limits.threads} threads (--limits seconds=..., threads=...)"
    if "memory" in last.lower() or code == -signal.SIGKILL or "bad_alloc" in last:
        return f"it needs more memory than {limits.memory / 2**30:.3g} GiB, or than there is (--limits memory=...): {last}"
    return f"the evaluating process ended with code {code}: {last}"


def _search_path() -> str:
    """Where this process finds modules, but not by accident of the working directory."""
    return os.pathsep.join(dict.fromkeys([str(Path(PACKAGE).parent), *(place for place in sys.path if Path(place).is_absolute())]))


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
