"""The default folder of a training: its model's folder or a new one, never that of a finished checkpoint."""

from itertools import count
from pathlib import Path

from robustbench_rkhs.nodes.code_names import code_in
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import models_folders
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.resume import (
    differences,
    finished_recipe,
    same_but_length,
    stored_recipe,
    stored_state,
    weights_part,
)

OWN = "mine"
"""`checkpoints/MODEL@mine` is the folder of a training that is not the one MODEL's recipe describes; the second of them goes to
`MODEL@mine2`, and so on. Git ignores them."""


def destination(model: str, recipe: TrainRecipe, fresh: bool = False) -> tuple[Path, str]:
    """The default folder of a training, and one line with the reason if it is not `checkpoints/MODEL`.

    `checkpoints/MODEL` belongs to the unchanged recipe `models/MODEL.yaml`, and a finished checkpoint there is never overwritten.
    Raises UserError where `fresh` would do that.
    """
    name = Path(model).stem
    folder = Path("checkpoints") / name
    shipped = next((place for models in models_folders() if (place := models / f"{name}.yaml").is_file()), Path(model))
    named = TrainRecipe.read(shipped)
    if weights_part(named) != weights_part(recipe):
        own = _own_folder(name, recipe)
        return own, f"not the recipe {shipped} ({differences(named, recipe)}): it is trained in {own}"
    if not (folder / "config.json").is_file():
        return folder, ""
    try:
        held = finished_recipe(folder, code_in(recipe.model_dump(mode="json")))
    except UserError:
        held = None
    if held is None or weights_part(held) != weights_part(recipe):
        other = differences(held, recipe) if held else "its recipe.yaml cannot be read"
        own = _own_folder(name, recipe)
        return own, f"{folder} holds this model by another recipe ({other}): it is trained in {own}"
    if fresh:
        raise UserError(f"{folder} is finished, and is only overwritten where its path is typed: --out {folder} --fresh")
    return folder, ""


def _own_folder(name: str, recipe: TrainRecipe) -> Path:
    """The first of NAME@mine, NAME@mine2 ... that holds nothing, or a training that this recipe's goes on from (or is)."""
    for number in count(1):
        folder = Path("checkpoints") / f"{name}@{OWN}{number if number > 1 else ''}"
        if _may_hold(folder, recipe):
            return folder
    raise AssertionError("unreachable")


def _may_hold(folder: Path, recipe: TrainRecipe) -> bool:
    """Whether a folder is free for the training of this recipe, or holds it already, or one that can be lengthened to it."""
    if not any((folder / file).exists() for file in ("recipe.yaml", "resume.pt", "config.json")):
        return True
    try:
        held = stored_recipe(folder, code_in(recipe.model_dump(mode="json")))
        if held is None or weights_part(held) == weights_part(recipe):
            return held is not None
        return same_but_length(held, recipe) and stored_state(recipe, folder, "cpu") is not None
    except UserError:
        return False
