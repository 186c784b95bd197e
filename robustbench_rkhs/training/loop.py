"""Training: one visible loop with four seams (attack, loss, penalties, projections)."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.code_names import TYPED
from robustbench_rkhs.nodes.names import plain_name
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.devices import describe
from robustbench_rkhs.runtime.distributed import join, rank, wait_for_all
from robustbench_rkhs.runtime.events import EpochFinished, Finished, OnEvent, PhaseStarted, emit, listening
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.runtime.locks import alone
from robustbench_rkhs.runtime.seals import write_commented
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.card import training_card
from robustbench_rkhs.training.device_step import DeviceStep
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.resume import stored_state
from robustbench_rkhs.training.run import Run
from robustbench_rkhs.training.threads import chosen


def train(
    recipe: TrainRecipe | Mapping[str, Any],
    folder: Path,
    *,
    device: str = "cpu",
    command: str = "",
    fresh: bool = False,
    half: bool = False,
    threads: int | None = None,
    save_seconds: float = 300,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Train, resume or find finished; write the checkpoint folder; return the last epoch's metrics.

    `recipe`: a TrainRecipe or its fields, where methods may be instances or your own as package.module:Name.

    All random numbers are seeded by (seed, epoch, step), so a run that was killed and resumed ends bit for bit like an
    uninterrupted one on the same device (not with `seconds`, which follows the clock). On a CPU it computes on one thread or on
    all, whichever a few steps at the start show to be faster; resumed, it keeps that number. `threads` overrides it.
    Raises UserError at a loss or gradient that is not finite, naming the step (on an accelerator up to 50 steps later, before
    anything is written); at a folder that holds another recipe's training (training/resume.py says what goes on and what can be
    lengthened); where nothing can be written.
    Under torchrun every step's batch is divided among the processes, and losses and gradients are averaged: the same training.
    One training at a time works in a folder: another one is refused before it begins.
    """
    _check_folder(Path(folder))
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError(f"threads: expected 1 to 1024, found {threads}")
    with alone(Path(folder), "a training") if os.environ.get("RANK", "0") == "0" else nullcontext():
        with listening(on_event):
            return _train(recipe, Path(folder), device, command, fresh, half, threads, save_seconds)


def _check_folder(folder: Path) -> None:
    """Raises UserError for a folder that is not one of its own: the root, or one whose README.md would be lost."""
    plain_name(Path(os.path.abspath(folder)).name, "checkpoint folder")
    if (folder / "README.md").exists() and not (folder / "recipe.yaml").exists():
        raise UserError(f"{folder} holds a README.md, which is no training's: choose a folder of its own")


def _train(
    recipe: TrainRecipe | Mapping[str, Any],
    folder: Path,
    device: str,
    command: str,
    fresh: bool,
    half: bool,
    threads: int | None,
    save_seconds: float,
) -> dict[str, Any]:
    """The training, where nobody else works in the folder."""
    entered = time.monotonic()
    recipe = recipe if isinstance(recipe, TrainRecipe) else TrainRecipe.parse(recipe, "train", TYPED)
    device = join(device)
    splits = recipe.data.load()
    train_split, validation = splits.train.to(device), splits.validation.to(device)
    run = Run(recipe, splits.test, device)
    emit(PhaseStarted(phase="preparing the training"))
    run.prepare(train_split)
    stored = None if fresh else stored_state(recipe, folder, device)
    if stored is not None:
        run.restore(stored)
    wait_for_all()
    if stored is None and rank() == 0:
        for file in ("config.json", "metrics.jsonl", "resume.pt") if folder.is_dir() else ():  # config.json first: it says finished
            (folder / file).unlink(missing_ok=True)
        write_commented(folder / "recipe.yaml", recipe.yaml())
    elif rank() == 0:
        checkpoint.reopen(folder)
    before = torch.random.get_rng_state()
    run.threads = chosen(run, train_split, threads)
    try:
        torch.set_num_threads(run.threads.count)
        stepper = DeviceStep(run, train_split) if recipe.on_device else None
        run.start_clock(entered)
        saved = time.monotonic()
        while run.epoch < recipe.epochs:
            started = time.monotonic()
            run.pace.begin()
            for step in run.stepped(train_split, stepper):
                if run.pace.marks and (step + 1) % run.watch.every and step + 1 < run.steps(train_split):
                    continue  # the following lines wait for the device
                run.watch.ask(run.epoch)
                emit(run.told(step + 1, run.steps(train_split)))
                if rank() == 0 and time.monotonic() - saved > save_seconds:
                    run.seconds += time.monotonic() - started
                    started = saved = time.monotonic()
                    run.save(folder)
                if run.out_of_time():
                    break
            run.seconds += time.monotonic() - started
            record = run.finish_epoch(validation)
            emit(EpochFinished(epoch=record["epoch"], epochs=recipe.epochs, metrics=record))
            if rank() == 0:
                write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in run.records))
                if time.monotonic() - saved > save_seconds / 60:
                    run.save(folder)
                    saved = time.monotonic()
            if run.out_of_time():
                break
    finally:
        torch.random.set_rng_state(before)
        torch.set_num_threads(run.threads.available)
    if rank() == 0:
        run.save(folder)  # from which it can be lengthened
        emit(PhaseStarted(phase="writing the checkpoint"))
        _write_checkpoint(run, splits.test, train_split, folder, command, half)
    wait_for_all()
    emit(Finished(seconds=time.monotonic() - entered))
    return run.records[-1]


def _write_checkpoint(run: "Run", test: Split, train_split: Split, folder: Path, command: str, half: bool) -> None:
    """Write the weights of the best and of the last epoch, recipe, card and config."""
    recipe, records = run.recipe, run.records
    trained = {
        "device": describe(run.device),
        **({"threads": str(run.threads)} if run.threads and torch.device(run.device).type == "cpu" else {}),
        "seconds": round(sum(record["seconds"] for record in records)),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        **({"started_from": run.started_from} if run.started_from else {}),
    }
    card = training_card(recipe, records, run.best_epoch, trained, command, len(train_split), train_split.digest, half)
    checkpoint.write_safetensors(folder / "last.safetensors", checkpoint.as_stored(run.evaluated().state_dict()))
    best = checkpoint.halve(run.best) if half else run.best
    checkpoint.save(folder, recipe, test, best, card, epoch=run.best_epoch, trained=trained)
