"""The engine of a Slurm job array: its tasks are ranks of one command, and a task that is pre-empted is queued again."""

import importlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_rkhs.evaluation import engine_choice
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.events import Message, Progress, emit
from robustbench_rkhs.runtime.extras import require

RESTARTS = 100
"""How often a task is queued again."""
NAP = 1.0
"""Seconds between two looks at the tasks."""


class Ended(NamedTuple):
    """The end of a command, and what it printed."""

    code: int
    output: str
    errors: str


class Task:
    """One task: the command as rank NUMBER of COUNT. Slurm's signal of a pre-emption or time limit queues it again as it is."""

    def __init__(self, words: Sequence[str], folder: Path, number: int, count: int) -> None:
        self.words, self.folder, self.number, self.count = list(words), folder, number, count

    def __call__(self) -> Ended:
        ranks = {"RKHS_RANK": str(self.number), "RKHS_RANKS": str(self.count)}
        done = subprocess.run(
            self.words, cwd=self.folder, env=os.environ | ranks, capture_output=True, text=True, preexec_fn=_deaf, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def checkpoint(self, *arguments: Any, **more: Any) -> Any:
        """What is queued again: the same, as the parts on disk are all that it knows."""
        submitit: Any = importlib.import_module("submitit")
        return submitit.helpers.DelayedSubmission(self, *arguments, **more)


class JobArray:
    """The command, submitted as an array of `choice.tasks` ranks. Only their parts on the shared disk are exchanged."""

    def __init__(self, choice: engine_choice.Submitit, words: Sequence[str], folder: Path) -> None:
        """Submits. Raises UserError where the queue refuses."""
        require("submitit", "slurm", "--engine submitit")
        submitit: Any = importlib.import_module("submitit")
        logs = Path(choice.folder)
        try:
            logs.mkdir(parents=True, exist_ok=True)
            executor = submitit.AutoExecutor(folder=logs / "%j", cluster=choice.cluster, slurm_max_num_timeout=RESTARTS)
            executor.update_parameters(name=Path(words[1]).name, timeout_min=choice.minutes, cpus_per_task=choice.cpus)
            executor.update_parameters(gpus_per_node=choice.gpus, mem_gb=choice.memory, tasks_per_node=1)
            if executor.cluster == "slurm":
                executor.update_parameters(slurm_array_parallelism=choice.tasks, slurm_partition=choice.partition)
            tasks = [Task(words, folder, number, choice.tasks) for number in range(choice.tasks)]
            self._jobs = executor.submit_array(tasks) if executor.cluster == "slurm" else [executor.submit(one) for one in tasks]
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"--engine submitit: {str(error).strip().splitlines()[0]}") from None

    @property
    def names(self) -> str:
        """The numbers of its jobs."""
        return " ".join(str(job.job_id) for job in self._jobs)

    def result(self) -> Ended:
        """Waits for all tasks, and says how many have ended; the end of the first, which alone prints.

        Says which others failed. Raises WorkerKilled if the first was lost. On an interruption the tasks are cancelled.
        """
        try:
            self._wait()
        except KeyboardInterrupt:
            for job in self._jobs:
                job.cancel()
            emit(Message(text=f"cancelled {self.names}"))
            raise
        first, *others = map(_end, self._jobs)
        for job, end in zip(self._jobs[1:], others, strict=True):
            if not isinstance(end, Ended):
                emit(Message(text=f"task {job.job_id} was lost: {end}"))
            elif end.code not in (0, getattr(first, "code", 0)):
                emit(Message(text=f"task {job.job_id} ended with exit code {end.code}: {_last_line(end.errors)}"))
        if isinstance(first, Ended):
            return first
        raise WorkerKilled(f"task {self._jobs[0].job_id}, which prints, was lost: {first}; the same command goes on from the parts")

    def _wait(self) -> None:
        """Until all tasks have ended, with an event whenever their states are asked for."""
        began, waiting = time.monotonic(), list(self._jobs)
        while waiting:
            states = Counter(str(job.state).lower() for job in waiting)
            event = Progress(
                phase="job array",
                method="",
                done=len(self._jobs) - len(waiting),
                total=len(self._jobs),
                unit="tasks",
                seconds=time.monotonic() - began,
                detail=", ".join(f"{count} {state}" for state, count in sorted(states.items())),
            )
            emit(event)
            time.sleep(NAP)
            waiting = [job for job in waiting if not job.done()]


def _deaf() -> None:
    """In a process that begins: it ignores the signal by which Slurm has its task queued again, and ends with the task."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _end(job: Any) -> Ended | str:
    """How a task ended, or why it was lost: killed, cancelled, out of memory, on a node that failed."""
    try:
        ended = Ended(*job.result())
    except Exception as error:  # whatever the queue raises
        return _last_line(str(error)) or type(error).__name__
    if ended.code >= 0:
        return ended
    name = signal.Signals(-ended.code).name
    return "killed (out of memory perhaps)" if name == "SIGKILL" else f"ended by {name}"


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "")
