"""Work on many tables by several processes."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing import get_context
from types import ModuleType
from typing import TypeVar

from robustbench_rkhs.runtime.children import as_worker, keyboard_held
from robustbench_rkhs.runtime.collection import collect_seldom

Task = TypeVar("Task")
Done = TypeVar("Done")
MANY = 32
"""Tasks from which other processes are worth their start, about 3 s each."""
MOST = 8
"""Most processes: each takes about 300 MB."""
TRIES = 2
"""How often processes are started: one may have been killed since the last work."""
_staying: ContextVar["Workers | None"] = ContextVar("staying", default=None)


class Workers:
    """Processes that are started when the first work comes, and stay for the next."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def begin(self) -> ProcessPoolExecutor:
        if self.pool is None:
            processes = min(_cores(), MOST)
            self.pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begun, initargs=(os.getpid(),))
        return self.pool

    def end(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None


@contextmanager
def staying() -> Iterator[None]:
    """Context manager: the processes of one `side_by_side` serve those after it, and end with it."""
    workers = Workers()
    token = _staying.set(workers)
    try:
        yield
    finally:
        _staying.reset(token)
        workers.end()


def side_by_side(work: Callable[[Task], Done], tasks: Sequence[Task]) -> Iterator[Done]:
    """The results of all tasks, in their order; by one process per core where there are many. `work` has to be importable.

    Where a process is killed, new ones do what is left; where that happens again, this one does.
    """
    kept, count = _staying.get(), 0
    for _ in range(TRIES):
        if len(tasks) - count < MANY or min(_cores(), MOST) < 2:
            break
        workers = kept or Workers()
        try:
            with _without_main(), keyboard_held():
                results = workers.begin().map(work, tasks[count:], chunksize=4)
            for done in results:
                yield done
                count += 1
        except BrokenProcessPool:
            workers.end()
        finally:
            if workers is not kept:
                workers.end()
    yield from map(work, tasks[count:])


def _begun(parent: int) -> None:
    as_worker(parent)
    collect_seldom()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes that start within it do not run the caller's script again, which may lack `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
