"""How many threads a training computes on."""

import copy
from typing import TYPE_CHECKING

import torch

from robustbench_rkhs.data import Split
from robustbench_rkhs.runtime.cost import estimated
from robustbench_rkhs.runtime.distributed import world
from robustbench_rkhs.runtime.threads import AFFORDABLE, Threads, given, measured

if TYPE_CHECKING:
    from robustbench_rkhs.training.run import Run


def chosen(run: "Run", split: Split, asked: int | None) -> Threads:
    """The number that was asked for, or that the training began with; else the faster of one and all, measured by a few steps.

    The steps are taken on a copy of the training, with fewer images where a step is long: the training itself has not moved.
    """
    available = torch.get_num_threads()
    if asked is not None:
        return given(asked)
    if run.threads is not None:
        return run.threads
    if torch.device(run.device).type != "cpu" or world() > 1:
        return Threads(available, available, why="the computation is elsewhere" if world() == 1 else "for each process")
    if available == 1:
        return Threads(1, 1, why="all there are")
    try:
        trial = copy.deepcopy(run)
    except Exception:  # an object of a user's own that cannot be copied
        return Threads(available, available, why="this training cannot be copied for a trial")
    return measured(lambda: _step(trial, split, _few(run, split)))


def _step(trial: "Run", split: Split, few: int) -> None:
    step, x, y, keys = next(iter(trial.batches(split)))
    trial.step(step, x[:few], y[:few], keys[:few])
    trial.position = 0


def _few(run: "Run", split: Split) -> int:
    """Images of a trial step: those of a batch, or as many as a step of half a second takes, about."""
    passes = 1 + (run.recipe.attack.steps if run.recipe.attack is not None else 0) + 2 * len(run.penalties)
    return max(2, min(run.recipe.batch_size, int(AFFORDABLE / max(estimated(run.model, split.shape) * passes, 1))))
