"""Error handling of the commands: an exit code, and one line on stderr for any exception."""

import errno
import os
import re
import signal
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from robustbench_rkhs.cli.endings import BAD_INPUT, FAILED, INTERRUPTED
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import PACKAGE
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.sinks import for_line

Call = Callable[[], int | None]
"""A command with its arguments."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
"""Error numbers of a full disk, missing rights, or a file in place of a folder."""
NO_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory", re.IGNORECASE)
"""Torch's messages when memory runs out."""
LIBRARIES = tuple({str(Path(place).resolve()) for place in sysconfig.get_paths().values()} | {sys.prefix, sys.base_prefix})
"""Folders of Python and installed packages: code outside of these and of ours is the user's own."""


def left(read: Callable[[], Call]) -> tuple[int, str]:
    """The exit code of the call that `read` makes, and what went wrong in a line, which is on stderr too.

    0: done; 1 and 3: as the command says, 1 also for a bug of ours; 2: bad input, an error in the user's own code, no space, no
    memory; 130: interrupted. The traceback of an unexpected error goes to a log file, which the line names.
    """
    try:
        call = read()
    except UserError as error:
        return BAD_INPUT, _said(str(error))
    except SystemExit as ended:  # after --help
        return (ended.code if isinstance(ended.code, int) else 0), ""
    except BaseException as error:
        return _failed(error)
    try:
        return call() or 0, ""
    except BaseException as error:
        return _failed(error)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Inside this context, a SIGTERM (of `timeout`, or of a queue's time limit) acts like Ctrl-C: results so far are kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failed(error: BaseException) -> tuple[int, str]:
    """The exit code of an exception, and its line."""
    if isinstance(error, UserError):
        return BAD_INPUT, _said(str(error))
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, _said("interrupted; the same command goes on from what was finished, if anything was", head="")
    if isinstance(error, WorkerKilled):
        return FAILED, _said(str(error))
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return BAD_INPUT, _said(f"cannot write {error.filename or 'a file'}: {error.strerror}")
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return BAD_INPUT, _said(f"out of memory: {cause(error)} ({_logged(error)})")
    if place := _own_code(error):
        return BAD_INPUT, _said(f"your own code failed: {cause(error)} ({place}; {_logged(error)})")
    return FAILED, _said(f"a fault of robustbench_rkhs, please report it: {cause(error)} ({_logged(error)})")


def _own_code(error: BaseException) -> str:
    """File and line in the user's own code that raised it, directly or in a library that it called; empty if our code did."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            return ""
        if path.is_file() and not any(path.resolve().is_relative_to(place) for place in LIBRARIES):
            return f"{path.name}, line {frame.lineno}"
    return ""


def _logged(error: BaseException) -> str:
    """Writes the traceback to a log file and says where."""
    try:
        handle, name = tempfile.mkstemp(prefix=f"{Path(sys.argv[0]).name}-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write("".join(traceback.format_exception(error)))
    except OSError as unwritten:
        return f"its traceback could not be written: {unwritten.strerror}"
    return f"traceback in {name}"


def _said(line: str, head: str = "error: ") -> str:
    """Prints the line on stderr, with terminal control characters made visible."""
    line = for_line(line)
    print(f"{head}{line}", file=sys.stderr)
    return line
