"""Workers: processes that take a block of images each, for attacks whose outcome for an image depends on no other image."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robustbench_rkhs.nodes.node import UserError


class Workers:
    """Processes that hold what this one held when they were made: a job sent to them is some positions."""

    def __init__(self, count: int, work: Callable[..., Any]) -> None:
        self.count, self._before = count, set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _hold, (work,))
        if not all(self._pool.map(_can_differentiate, range(count))):
            self.stop()
            raise UserError(
                "workers cannot take gradients here: this process took some with an accelerator present; evaluate in a new process"
            )

    def each(self, blocks: list[Tensor], *given: Any) -> list[Any]:
        """The work on each of these blocks of positions, in their order. Raises what a worker raises."""
        try:
            return list(self._pool.map(_work, blocks, *([one] * len(blocks) for one in given)))
        except BrokenProcessPool:
            raise UserError("a worker was killed, out of memory perhaps; the same command goes on from here") from None

    def stop(self) -> None:
        """End the processes, whatever they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - self._before:
            process.terminate()


@contextmanager
def started(count: int, device: str, work: Callable[..., Any]) -> Iterator[Workers | None]:
    """`count` workers, each on one thread, as is this process meanwhile: what they find then depends on no number of them.

    None, and nothing changed, for a single one. Raises UserError where processes cannot share a model as it is in memory.
    """
    if count == 1:
        yield None
        return
    if torch.device(device).type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        raise UserError(
            f"workers share the model in the memory of a CPU, found device {device!r}: leave out workers, or use the CPU"
        )
    threads, workers = torch.get_num_threads(), None
    torch.set_num_threads(1)  # before they are made: they inherit no threads
    try:
        workers = Workers(count, work)
        yield workers
    finally:
        if workers is not None:
            workers.stop()
        torch.set_num_threads(threads)


_held: Callable[..., Any]
"""In a worker: the work of its jobs."""


def _hold(work: Callable[..., Any]) -> None:
    global _held
    _held = work
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard interrupts the process that gives out the work


def _work(*given: Any) -> Any:
    return _held(*given)


def _can_differentiate(_: int) -> bool:
    x = torch.ones(1, requires_grad=True)
    try:
        (2 * x).sum().backward()
    except RuntimeError:
        return False
    return True
