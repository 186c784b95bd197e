"""Plays torchrun: two ranks train into one folder undisturbed, and into another with rank 1 lost three times.

For test_restarted_ranks.py. As torchrun does, it keeps one store for all starts of a training and ends rank 0 when rank 1 is lost.
The ranks are forks, which saves their imports.
"""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import torch
from data_parallel_worker import BASE, RECIPES
from torch import distributed as dist

from robustbench_rkhs.runtime.events import EpochFinished, Event, TrainingStep
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe

RECIPE = TrainRecipe.parse(BASE | RECIPES["pgd"] | {"epochs": 4})
LOSSES = 3
HUNG = 60.0
"""Seconds after which a rank counts as hung: a start takes less than one."""


def train_both(place: Path) -> None:
    """Train into place/whole, and into place/broken with losses."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)  # its late imports, once for all ranks
    begin(place / "whole", agent_store(), 0, lost=False)
    store = agent_store()
    for number in range(LOSSES + 1):
        begin(place / "broken", store, number, lost=number < LOSSES)


def agent_store() -> dist.TCPStore:
    """What torchrun's agent serves to its ranks."""
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def begin(folder: Path, store: dist.TCPStore, number: int, lost: bool) -> None:
    """Start number `number` of both ranks, until they end or, `lost`, until rank 1 is killed."""
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=work, args=(rank, folder, store.port, number, lost)) for rank in (0, 1)]
    try:
        for rank in ranks:
            rank.start()
        for rank in reversed(ranks):
            rank.join(HUNG)
            if lost:
                break
        expected = [-signal.SIGKILL] if lost else [0, 0]
        codes = [rank.exitcode for rank in (ranks[1:] if lost else ranks)]
        assert codes == expected, f"start {number} of {folder.name}: exit codes {codes}, expected {expected} (None: hung)"
    finally:
        for rank in ranks:
            rank.terminate()
            rank.join()


def work(rank: int, folder: Path, port: int, number: int, lost: bool) -> None:
    """A rank's training. Start n resumes after the first step of epoch n - 1 at the earliest, and is lost after epoch n."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}

    def look(event: Event) -> None:
        if isinstance(event, TrainingStep):
            assert number == 0 or (event.epoch, event.step) >= (number - 1, 2), f"start {number} was not resumed: {event}"
        if lost and rank == 1 and isinstance(event, EpochFinished) and event.epoch == number:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    time.sleep(0.2 * (number % 2 == rank))  # one rank finds what the last start left of the other
    train(RECIPE, folder, threads=1, save_seconds=0, on_event=look)
    dist.destroy_process_group()
