"""The engine of an evaluation, started as chosen and stopped at its end."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from robustbench_rkhs.evaluation.engine_choice import AnyEngine, Here, Ranks, Ray
from robustbench_rkhs.evaluation.engines import ranks
from robustbench_rkhs.evaluation.engines.base import Engine
from robustbench_rkhs.evaluation.engines.here import InProcess
from robustbench_rkhs.evaluation.engines.processes import Processes
from robustbench_rkhs.evaluation.engines.ranks import Rank
from robustbench_rkhs.evaluation.engines.ray import RayTasks
from robustbench_rkhs.evaluation.engines.worker import Work
from robustbench_rkhs.evaluation.loaders import Loader, RunnerMaker
from robustbench_rkhs.evaluation.runner import Runner
from robustbench_rkhs.evaluation.store import Store
from robustbench_rkhs.nodes.node import UserError


@contextmanager
def started(choice: AnyEngine, runner: Runner, loader: Loader | None, workers: int | None, store: Store) -> Iterator[Engine]:
    """The engine that was chosen. Raises UserError where there can be none.

    `loader`: where processes on other devices get the same model and images. `workers`: processes of the engine `here`.
    """
    make: Callable[[str], RunnerMaker] = partial(RunnerMaker.of, runner, loader)
    engine: Engine = InProcess(runner)
    try:
        if isinstance(choice, Here):
            engine = _here(choice, runner, workers, make)
        elif workers is not None:
            raise UserError(f"--workers are processes of the engine here, found engine {choice.name}: leave out --workers")
        elif isinstance(choice, Ranks):
            if store.folder is None:
                raise UserError(f"ranks share the parts in a folder: engine {choice.name} needs one, found none")
            engine = ranks.Ranks(runner, store, store.folder / "locks", Rank.mine().world)
        elif isinstance(choice, Ray):
            engine = RayTasks(RunnerMaker.of(runner, None, runner.subject.device), runner, choice)
        else:
            raise UserError("a job array is submitted by a command: rkhs-eval --engine submitit ...")
        yield engine
    finally:
        engine.stop()


def _here(choice: Here, work: Work, workers: int | None, make: Callable[[str], RunnerMaker]) -> Engine:
    """This process where there is one worker, else processes of one thread each, in turn on the devices.

    On a CPU they share what is in memory; on GPUs each has its own device, and what `make(device)` makes there.
    """
    subject = getattr(work, "subject", None)
    device = subject.device if subject is not None else "cpu"
    count, kind = workers or max(len(choice.devices), 1), torch.device(device).type
    if count > 1 and kind not in ("cpu", "cuda"):
        raise UserError(f"workers compute on a CPU or on GPUs, found device {device!r}: leave out workers")
    if count == 1:
        return InProcess(work)
    if kind == "cuda" or choice.devices:
        all_devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        devices = choice.devices or ([device] if ":" in device else all_devices)
        return Processes([make(devices[number % len(devices)]) for number in range(count)], work, "spawn")
    if "fork" in multiprocessing.get_all_start_methods():
        return Processes([lambda: work] * count, work)
    return Processes([make(device)] * count, work, "spawn")
