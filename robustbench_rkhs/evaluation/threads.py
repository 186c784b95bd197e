"""How many threads an evaluation computes on."""

from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_rkhs.evaluation.cache_key import digest_of
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.cost import estimated
from robustbench_rkhs.runtime.seals import read_record, write_record
from robustbench_rkhs.runtime.threads import AFFORDABLE, Threads, given, measured

FEW = 1e7
"""Multiply-adds of one image, about, up to which more threads are not worth what they cost."""


def on_one_thread(model: nn.Module, shape: tuple[int, ...], workers: int | None, device: str) -> bool:
    """Whether each process computes on one thread: where a number of workers is given, and for a small network on a CPU.

    Then what is found depends on no number of workers or cores.
    """
    if workers is not None:
        return True
    return torch.device(device).type == "cpu" and estimated(model, shape) < FEW


def chosen(model: nn.Module, x: Tensor, recipe: EvalRecipe, device: str, key: str, folder: Path | None) -> Threads:
    """The number that was asked for; one, where `on_one_thread`; the number that an earlier run of this model in `folder` took;
    else the faster of one and all, measured by gradients of a few images.

    `key`: of the model's function. What is measured is kept in the folder, so that finished parts are found again.
    """
    available = torch.get_num_threads()
    if recipe.threads is not None:
        return given(recipe.threads)
    if on_one_thread(model, tuple(x.shape[1:]), recipe.workers, device):
        small = "of a small network" if recipe.workers is None else "for each worker"
        return Threads(1, available, why=small)
    if torch.device(device).type != "cpu" or not len(x):
        return Threads(available, available, why="the computation is elsewhere")
    path = folder and folder / f"threads-{digest_of([key, available], 12)}.json"
    if path and (kept := _kept(path)):
        return kept
    few = int(AFFORDABLE / max(estimated(model, tuple(x.shape[1:])), 1))
    images, asked = x[: max(1, min(few, recipe.block, len(x)))], model.base if isinstance(model, Smoothed) else model
    found = measured(lambda: _gradient(asked, images))
    if path and found.one is not None:
        write_record(path, found.plain())
    return found


def _gradient(model: nn.Module, images: Tensor) -> None:
    """What an attack does most: a pass with the gradient of the images."""
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        torch.autograd.grad(model(leaf.clone()).sum(), leaf)  # a copy, as a model may write into its images


def _kept(path: Path) -> Threads | None:
    """What was measured before; None where there is nothing readable."""
    try:
        return Threads(**read_record(path)) if path.is_file() else None
    except (UserError, TypeError):
        return None
