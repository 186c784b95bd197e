"""A worker: a process that computes jobs, and ends with the process that started it."""

import pickle
import select
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import as_worker
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.events import listening_alone
from robustbench_rkhs.runtime.heartbeat import Meter, heartbeat, metered
from robustbench_rkhs.verdicts import Part

Work = Callable[[Job], Part]
NO_GRADIENTS = "workers cannot take gradients here: this process took some with an accelerator present; evaluate in a new process"


def serve(make: Callable[[], Work], pipe: Any, parent: int, others: Sequence[Any]) -> None:
    """The main loop of a worker: jobs from the pipe, results into it."""
    as_worker(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    try:
        work = make()
        problem = "" if _can_differentiate() else NO_GRADIENTS
    except UserError as error:
        problem = str(error)
    with suppress(EOFError, OSError):  # the process that gives out the work has ended
        pipe.send_bytes(pickle.dumps(problem))
        while not problem:
            job = pickle.loads(pipe.recv_bytes())  # from the process that started this one
            with listening_alone(lambda event: pipe.send_bytes(pickle.dumps(event))), metered() as meter:
                with heartbeat(lambda meter=meter: _tell(pipe, meter)):  # type: ignore[misc]
                    answer = _answer(work, job)
            pipe.send_bytes(answer)


def _tell(pipe: Any, meter: Meter) -> None:
    """Send how far the job has come, unless that would wait for the reader."""
    if select.select([], [pipe], [], 0)[1]:
        pipe.send_bytes(pickle.dumps(meter))


def _answer(work: Work, job: Job) -> bytes:
    try:
        return pickle.dumps(work(job))
    except (UserError, OutOfTime) as error:
        return pickle.dumps(error)
    except Exception:
        return pickle.dumps(RuntimeError(f"in a worker:\n{traceback.format_exc()}"))


def _can_differentiate() -> bool:
    x = torch.ones(1, requires_grad=True)
    try:
        (2 * x).sum().backward()
    except RuntimeError:
        return False
    return True
