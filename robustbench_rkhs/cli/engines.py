"""The engine of a command: which computes, on which devices, and which of several ranks prints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from robustbench_rkhs.cli.command import note, usable_device
from robustbench_rkhs.cli.display import shown
from robustbench_rkhs.cli.screen import console_of_width, printed, relay
from robustbench_rkhs.evaluation.engine_choice import AnyEngine, Here, Ranks, Submitit, engine_from
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.object_store import ObjectStore


def chosen_engine(text: str, device: str) -> tuple[AnyEngine, str]:
    """The engine of --engine and the device of --device, where several make a process for each. Raises UserError."""
    choice, devices = engine_from(text), device.split(",")
    _check_one(choice, device)
    if isinstance(choice, Ranks):
        return choice, usable_device(_own_device(device))
    if not isinstance(choice, Here) or len(devices) == 1:
        return choice, usable_device(device)
    usable = [usable_device(one) for one in devices]
    return choice.model_copy(update={"devices": tuple(usable)}), usable[0]


def check_engine(choice: AnyEngine, workers: bool, parts: str | None) -> None:
    """Raises UserError, before anything is loaded, for a typed number of `workers` or for `parts` that the engine refuses."""
    if workers and not isinstance(choice, Here):
        raise UserError(f"--workers are processes of the engine here, found engine {choice.name}: leave out --workers")
    if parts is not None:
        ObjectStore(parts)


@contextmanager
def leading(choice: AnyEngine) -> Iterator[bool]:
    """Context manager: whether this process prints and draws. The others of several ranks say nothing, and write the same table."""
    from robustbench_rkhs.evaluation.engines.ranks import Rank

    if not isinstance(choice, Ranks) or Rank.mine().number == 0:
        yield True
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield False


def submitted(choice: Submitit, device: str, quiet: bool) -> int:
    """Run this command as a job array, and print what its first rank printed. Returns the array's exit code.

    Meanwhile says how many tasks have ended, unless `quiet`. Raises UserError.
    """
    from robustbench_rkhs.evaluation.engines.submitit import JobArray

    _check_one(choice, device)
    words = list(sys.argv[1:])
    place = next(at for at, word in enumerate(words) if word.partition("=")[0] == "--engine")
    words[place : place + (1 if "=" in words[place] else 2)] = ["--engine", "srun"]
    array = JobArray(choice, [sys.executable, sys.argv[0], *words], Path.cwd())
    note(f"submitted as {array.names}; logs: {choice.folder}")
    with shown(console_of_width(120, stderr=True), quiet):
        ended = array.result()
    if ended.errors.strip():
        printed(ended.errors.rstrip(), stderr=True)
    if ended.output.strip():
        relay(ended.output.rstrip())
    return ended.code


def _check_one(choice: AnyEngine, device: str) -> None:
    """Raises UserError for several devices of an engine whose processes have one each."""
    if "," in device and not isinstance(choice, Here):
        line = f"--device {device}: several devices are of the engine here, found engine {choice.name}"
        raise UserError(f"{line}; expected one, such as --device cuda, for each of its processes")


def _own_device(device: str) -> str:
    """`cuda` as this rank's own GPU of its machine, where its launcher counts them."""
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if device not in ("auto", "cuda") or local is None:
        return device
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(local) % count}" if count else device
