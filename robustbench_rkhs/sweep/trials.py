"""One trial: a setting trained for every seed, scored on validation images, stopped early where it falls behind."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from optuna.trial import Trial
from torch import nn

from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.data import Split
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.code_names import code_in
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.events import EpochFinished, Event, Message, emit
from robustbench_rkhs.runtime.seals import Damaged, read_record, set_aside, write_record
from robustbench_rkhs.sweep.description import Setting
from robustbench_rkhs.sweep.plan import Plan
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.validation import validate


class Stopped(BaseException):
    """The pruner stopped this trial. Like KeyboardInterrupt no Exception, which would not end a training from its `on_event`."""


def score(plan: Plan, model: nn.Module, validation: Split) -> dict[str, Any]:
    """Clean, robust and certified accuracy of a trained model on validation images; `refused`: why nothing is certified."""
    found = validate(model, validation, plan.attack)
    certified, refused = certified_share(plan, model, validation)
    return {
        "clean": found["validation_clean"],
        "robust": found["validation_robust"],
        "certified": certified,
        "refused": refused,
    }


def certified_share(plan: Plan, model: nn.Module, images: Split) -> tuple[float | None, str]:
    """The share proved at eps by the margin certificate; None and the reason where it is refused."""
    try:
        radii = MarginCertificate(norm=plan.sweep.norm).radii(model, images.x, images.y)
    except Uncertifiable as refusal:
        return None, str(refusal)
    return (radii >= plan.sweep.eps).double().mean().item(), ""


class Watch:
    """Reports every epoch to the journal, and stops the training if the pruner says so.

    Epochs of the second seed follow those of the first: at each step a trial is compared with the others at the same step. It
    stops at the first step of the next epoch, when the last one is on disk.
    """

    def __init__(self, plan: Plan, trial: Trial, place: int, epochs: int) -> None:
        self.trial, self.first, self.pruning, self.stop = trial, place * epochs, plan.sweep.prune is not None, False
        self.key = plan.sweep.pick
        self.reported = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def __call__(self, event: Event) -> None:
        if self.stop:
            raise Stopped
        if not isinstance(event, EpochFinished) or not self.pruning or self.key not in event.metrics:
            return
        step = self.first + event.epoch
        if step not in self.reported:  # a resumed training may report an epoch again
            self.trial.report(event.metrics[self.key], step)
        self.stop = self.trial.should_prune()


def run_trial(plan: Plan, trial: Trial, setting: Setting, folder: Path, device: str, command: str) -> list[dict[str, Any]]:
    """Train and score a setting at every seed, in FOLDER/seed-S. Finished runs are read, not repeated.

    Raises Stopped where the trial is pruned, UserError where its recipe is refused or its training does not stay finite.
    """
    runs = []
    for place, seed in enumerate(plan.sweep.seeds):
        recipe = plan.recipe(setting, seed)
        run = folder / f"seed-{seed}"
        stored = run / "score.json"
        found = _stored(stored, recipe)
        if found is None:
            watch = Watch(plan, trial, place, recipe.epochs)
            _trained(recipe, run, device, command, watch)
            found = _scored(plan, recipe, run, device)
            write_record(stored, {**found, "recipe": _key(recipe)})
            if watch.stop and place + 1 < len(plan.sweep.seeds):
                raise Stopped
        runs.append(found | {"seed": seed, "folder": str(run)})
        emit(Message(text=f"trial {trial.number}, seed {seed}: {words(runs[-1])}"))
    return runs


def _stored(path: Path, recipe: TrainRecipe) -> dict[str, Any] | None:
    """The scores of a finished run; None without any. A file that is damaged or of another recipe is set aside."""
    if not path.is_file():
        return None
    try:
        found = read_record(path, required=True)
        if found.pop("recipe", None) != _key(recipe):
            raise Damaged(path, "it holds the scores of another recipe")
        return found
    except UserError as damaged:
        set_aside(path, damaged)
        return None


def _key(recipe: TrainRecipe) -> str:
    return hashlib.sha256(recipe.yaml().encode()).hexdigest()


def _trained(recipe: TrainRecipe, folder: Path, device: str, command: str, watch: Watch) -> None:
    """Train, or resume; a worker may have been killed between the training and its score."""
    config, fresh = folder / "config.json", False
    if config.is_file():
        try:
            held = checkpoint.load(folder, code_in(recipe.model_dump(mode="json"))).recipe
            if _key(held) != _key(recipe):
                raise Damaged(config, "it is of another recipe")
        except Damaged as damaged:
            set_aside(config, damaged)
            fresh = True
    if not config.is_file():
        train(recipe, folder, device=device, command=command, save_seconds=60, on_event=watch, fresh=fresh)
    for leftover in ("resume.pt", "last.safetensors"):
        (folder / leftover).unlink(missing_ok=True)


def _scored(plan: Plan, recipe: TrainRecipe, folder: Path, device: str) -> dict[str, Any]:
    """Score the stored model of the best epoch on the validation images."""
    loaded = checkpoint.load(folder, plan.code)
    with torch.random.fork_rng(devices=[]):
        found = score(plan, loaded.model.to(device), recipe.data.load().validation.to(device))
    return found | {
        "epoch": loaded.config["epoch"],
        "weights": loaded.weights,
        "key": key_of(loaded.model),
        "device": loaded.config["trained"]["device"],
        "date": loaded.config["trained"]["date"],
        "seconds": loaded.config["trained"]["seconds"],
    }


def words(run: dict[str, Any]) -> str:
    """A run's scores in a line."""
    certified = "not certifiable" if run["certified"] is None else f"certified {run['certified']:.1%}"
    return f"validation clean {run['clean']:.1%}, robust {run['robust']:.1%}, {certified}"
