"""A function run in a process of its own that is killed midway: forked, since importing torch again takes seconds."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch


def told_by(
    work: Callable[..., None], *arguments: object, after: int | None = None, how: int = signal.SIGKILL
) -> tuple[list[Any], int]:
    """What `work(*arguments, tell)` tells in a process of its own, and that process's exit code.

    With `after`, the process is sent the signal `how` when it has told so many things.
    """
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")  # CUDA does not survive a fork
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(work, arguments, theirs))
    child.start()
    theirs.close()
    told: list[Any] = []
    while True:
        try:
            told.append(mine.recv())
        except EOFError:
            break
        if len(told) == after and child.pid:
            os.kill(child.pid, how)
    child.join()
    assert child.exitcode is not None
    return told, child.exitcode


def _run(work: Callable[..., None], arguments: tuple[object, ...], theirs: Connection) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
    work(*arguments, theirs.send)
