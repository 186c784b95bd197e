"""A Ray cluster: joined by address, or begun on this machine for one process."""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from robustbench_rkhs.evaluation import engine_choice
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.events import Message, emit
from robustbench_rkhs.runtime.extras import require


class Cluster:
    """A cluster that was joined, or begun for this process alone."""

    def __init__(self, choice: engine_choice.Ray) -> None:
        """Raises UserError where there is none, or no room in it."""
        require("ray", "ray", "--engine ray")
        self.ray: Any = importlib.import_module("ray")
        self.choice, self._began = choice, not self.ray.is_initialized()
        if self._began:
            _connect(self.ray, choice.address or os.environ.get("RAY_ADDRESS"))
        room = self.ray.cluster_resources()
        self.width = int(room.get("CPU", 0) / choice.cpus)
        """Tasks that run at once."""
        if choice.gpus > 0:
            self.width = min(self.width, int(room.get("GPU", 0) / choice.gpus))
        if self.width < 1:
            found = ", ".join(f"{room.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
            self.leave()
            raise UserError(f"--engine ray: a job takes {choice.cpus:g} CPU and {choice.gpus:g} GPU, found a cluster of {found}")

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a task, which is run again where its worker or node is lost."""
        wanted = {"num_cpus": self.choice.cpus, "num_gpus": self.choice.gpus, "scheduling_strategy": "SPREAD"}
        started: Callable[..., Any] = self.ray.remote(max_retries=self.choice.retries, retry_exceptions=False, **wanted)(
            function
        ).remote
        return started

    def wait(self, tasks: Sequence[Any]) -> None:
        """Until all have ended, or were lost more often than they are retried. Raises the UserError of one."""
        for task in tasks:
            try:
                self.ray.get(task)
            except self.ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except self.ray.exceptions.RayError as error:
                emit(Message(text=f"a task of the cluster was lost: {first_line(error)}"))

    def leave(self) -> None:
        """Shut down what was begun here."""
        if self._began:
            self.ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster, or begin one of this machine. Raises UserError."""
    asked = {"log_to_driver": False, "include_dashboard": False if address is None else None, "logging_level": "error"}
    for last in (False, True):
        try:
            ray.init(address=address, **asked)
            return
        except Exception as error:  # a cluster that does not start in time raises nothing more special
            if last or address is not None:
                raise UserError(f"--engine ray: no cluster at {address or 'this machine'}: {first_line(error)}") from None
            emit(Message(text=f"ray did not start on this machine ({first_line(error)}): it is tried once more"))
            ray.shutdown()  # what of it did start


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
