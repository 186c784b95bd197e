"""Training from a model's name with changed fields, a mapping or a recipe, and the choice of its folder."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.arguments import checked_arguments
from robustbench_rkhs.nodes.code_names import TYPED
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.overrides import override_all
from robustbench_rkhs.runtime.caller_context import own_context
from robustbench_rkhs.runtime.devices import usable
from robustbench_rkhs.runtime.events import Message, OnEvent, emit
from robustbench_rkhs.runtime.lines import followed
from robustbench_rkhs.training import loop
from robustbench_rkhs.training.destination import destination
from robustbench_rkhs.training.recipe import TrainRecipe


@checked_arguments(name="recipe", model="recipe", out="folder")
@own_context()
def train(
    recipe: Any,
    folder: str | Path | None = None,
    *,
    device: str = "auto",
    fresh: bool = False,
    half: bool = False,
    threads: int | None = None,
    command: str = "",
    save_seconds: float = 300,
    on_event: OnEvent | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Train, resume or find finished; write the checkpoint folder; return the last epoch's metrics and the `folder`.

    `recipe`: a model's name in models/ (or the path of a YAML file), a mapping of fields, or a TrainRecipe; methods may be
    instances or your own as package.module:Name. `fields` change it: `train("digits_mlp", epochs=3, **{"attack.eps": 0.5})`.
    `folder`: by default checkpoints/NAME for an unchanged named recipe and checkpoints/NAME@mine, @mine2 ... for a changed
    one. A training that was stopped goes on from where it was; `fresh` trains anew over what the folder holds; `half` stores the
    weights in half precision. `on_event` is called with every event: steps, epochs with their metrics, a line with the
    folder of the training and the reason (`runtime/events.py`).

    All random numbers are seeded by (seed, epoch, step), so a run that was killed and resumed ends bit for bit like an
    uninterrupted one on the same device (not with `seconds`, which follows the clock). `threads`: of PyTorch, on a CPU; by default
    one or all, whichever a few steps at the start show to be faster, and that number again when it is resumed.
    Raises UserError in one line: for an invalid recipe; at a loss or gradient that is not finite; for a folder that holds
    another recipe's training; where nothing can be written.
    """
    settings: dict[str, Any] = {"command": command, "fresh": fresh, "half": half, "save_seconds": save_seconds}
    with followed(on_event):
        found, place = prepared(recipe, folder, fields, fresh)
        return loop.train(found, place, device=usable(device), threads=threads, **settings) | {"folder": str(place)}


def prepared(
    recipe: Any,
    folder: str | Path | None,
    fields: Mapping[str, Any],
    fresh: bool,
) -> tuple[TrainRecipe, Path]:
    """The recipe with these fields changed, and the folder of its training. Raises UserError."""
    if isinstance(recipe, str | Path):
        found = TrainRecipe.read(recipe, dict(fields))
    elif isinstance(recipe, TrainRecipe | Mapping):
        stored = recipe.model_dump(mode="json") if isinstance(recipe, TrainRecipe) else copy.deepcopy(dict(recipe))
        for line in override_all(stored, dict(fields), TrainRecipe):
            emit(Message(text=line))
        found = TrainRecipe.parse(stored, "train", TYPED) if fields or not isinstance(recipe, TrainRecipe) else recipe
    else:
        what = "nothing" if recipe is None else type(recipe).__name__
        raise UserError(f"train: expected a model's name, a mapping of recipe fields or a TrainRecipe, found {what}")
    if folder is not None:
        return found, Path(folder)
    if not isinstance(recipe, str | Path):
        raise UserError("train: a recipe without a name needs a folder: train(recipe, 'checkpoints/NAME')")
    place, why = destination(str(recipe), found, fresh)
    if why:
        emit(Message(text=why))
    return found, place
