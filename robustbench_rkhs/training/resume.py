"""Resuming: whether the training in a folder can be continued, is finished, or can be lengthened."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from robustbench_rkhs.nodes.code_names import CLOSED, Code, code_in
from robustbench_rkhs.nodes.differences import changes
from robustbench_rkhs.nodes.documents import yaml_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.ramps import Scheduled
from robustbench_rkhs.runtime.seals import Damaged, seal_of, set_aside
from robustbench_rkhs.training.recipe import TrainRecipe

CHOOSING = ("validate_with", "certify_eps", "validate_every")
"""Fields that only select an epoch; without validation images they change nothing."""


def stored_state(recipe: TrainRecipe, folder: Path, device: str) -> dict[str, Any] | None:
    """The state to go on from, None where the folder holds nothing of a training. Raises UserError where it is not to be touched.

    Recipes are compared as parsed, so that a field that was added since, at its default, is no difference. A training that is
    finished, or that was begun with another number of epochs, goes on to `recipe.epochs` where nothing in the recipe depends on
    how long the training is: the result is then that of one training of this length.
    """
    code = code_in(recipe.model_dump(mode="json"))
    finished = finished_recipe(folder, code)
    if finished is not None and weights_part(finished) == weights_part(recipe):
        again = f"to train it again: --out {folder} --fresh"
        raise UserError(f"{folder} already holds this recipe, trained; {again}")
    state = _read_state(folder / "resume.pt", device)
    if state is None:
        if finished is not None:
            raise UserError(_another(folder, finished, recipe, "it has no resume.pt, from which a training goes on"))
        return None
    begun = _parsed(state["recipe"], folder / "resume.pt", code)
    if weights_part(begun) == weights_part(recipe):
        return state
    reason = next(_hindrances(begun, recipe, state["where"]), None)
    if reason is not None or (finished is not None and not same_but_length(finished, recipe)):
        raise UserError(_another(folder, finished or begun, recipe, reason, unfinished=finished is None))
    return state


def weights_part(recipe: TrainRecipe) -> dict[str, Any]:
    """The fields that determine the stored weights, as plain values."""
    fields = recipe.model_dump(mode="json", exclude={"about": True, "data": {"digest"}})
    for key in CHOOSING if not recipe.data.validation else ():
        del fields[key]
    return fields


def same_but_length(one: TrainRecipe, other: TrainRecipe) -> bool:
    """Whether two recipes differ only in the number of epochs."""
    return weights_part(one) | {"epochs": None} == weights_part(other) | {"epochs": None}


def differences(before: TrainRecipe, now: TrainRecipe) -> str:
    """A short list of the differences between two recipes that affect the weights."""
    found = changes(weights_part(before), weights_part(now))
    shown = "; ".join(line if len(line) <= 100 else f"{line[:97]}..." for line in found[:3])
    return shown + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _hindrances(begun: TrainRecipe, recipe: TrainRecipe, where: list[float]) -> Iterator[str]:
    """Why a started training cannot be continued to the length of this recipe; empty if it can."""
    if not same_but_length(begun, recipe):
        yield ""
        return
    if recipe.epochs < where[0] + (where[1] > 0):
        yield f"{int(where[0])} epochs are trained already"
    if recipe.seconds:
        yield "with `seconds` every schedule depends on the time"
    if not recipe.schedule.by_epoch:
        yield f"schedule {recipe.schedule.label!r} is laid over the whole training"
    if recipe.attack is not None and recipe.attack_warmup:
        yield "attack_warmup is a share of the whole training"
    for part in (recipe.loss, *recipe.penalties):
        if isinstance(part, Scheduled) and part.schedule:
            yield f"the ramps of {part.label!r} are laid over the whole training"
    for one in recipe.projections:
        if one.in_schedule(begun.epochs) != one.in_schedule(recipe.epochs):
            yield f"kappa of a projection is shrunk to a training of {begun.epochs} epochs"
    if recipe.data.validation and where[0] == begun.epochs and begun.epochs % recipe.validate_every:
        yield f"epoch {begun.epochs} was validated only because it was the last (validate_every {recipe.validate_every})"


def _another(folder: Path, held: TrainRecipe, recipe: TrainRecipe, reason: str | None, unfinished: bool = False) -> str:
    """The error for a folder that holds another training."""
    what = "an unfinished training" if unfinished else "a model"
    if reason and same_but_length(held, recipe):
        line = f"{folder} holds {what} of this recipe at {held.epochs} epochs, which cannot become {recipe.epochs}: {reason}"
    else:
        line = f"{folder} holds {what} of another recipe ({differences(held, recipe)})"
    return f"{line}: choose another --out, or overwrite it with --out {folder} --fresh"


def finished_recipe(folder: Path, code: Code = CLOSED) -> TrainRecipe | None:
    """The recipe of a finished checkpoint, None where there is none. Raises UserError where it cannot be read."""
    return stored_recipe(folder, code) if (folder / "config.json").is_file() else None


def stored_recipe(folder: Path, code: Code = CLOSED) -> TrainRecipe | None:
    """The recipe of the training in a folder, finished or not; None where there is none. Raises UserError if unreadable."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return None
    try:
        seal_of(path)
        return _parsed(path.read_text(), path, code)
    except Damaged as damaged:
        raise UserError(f"{damaged}; {_over(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is unreadable ({type(error).__name__}); {_over(path)}") from None


def _over(path: Path) -> str:
    return f"to start over: --out {path.parent} --fresh"


def _parsed(text: str, source: Path, code: Code) -> TrainRecipe:
    """A stored recipe; fields that were added since get their defaults. Raises UserError where this version cannot read it."""
    try:
        stored = yaml_of(text, str(source))
        if not isinstance(stored, dict):
            raise UserError(f"{source}: expected a mapping of recipe fields, found {type(stored).__name__}")
        return TrainRecipe.parse(stored, str(source), code)
    except UserError as error:
        raise UserError(f"{error} (written by another version?); {_over(source)}") from None


def _read_state(path: Path, device: str) -> dict[str, Any] | None:
    """resume.pt: ours alone, read with weights_only, so that nothing in it is executed; a damaged one is set aside.

    Raises UserError where it is foreign.
    """
    if not path.is_file():
        return None
    try:
        seal_of(path)
    except Damaged as damaged:
        set_aside(path, damaged)  # what was trained is trained again
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        epoch, position, *_ = state["where"]
        return state | {"recipe": str(state["recipe"]), "where": [int(epoch), int(position), *state["where"][2:]]}
    except Exception as error:  # torch raises many kinds for foreign bytes
        raise UserError(f"{path} is unreadable ({type(error).__name__}); {_over(path)}") from None
