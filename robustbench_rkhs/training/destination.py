"""Where a training goes when no folder is typed: its model's folder, or one of its own, never over a finished checkpoint."""

from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import models_folders
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.resume import differences, finished_recipe, weights_part

OWN = "mine"
"""`checkpoints/MODEL@mine` is the folder of a training that is not the one MODEL's recipe describes; git ignores it."""


def destination(model: str, recipe: TrainRecipe, fresh: bool = False) -> tuple[Path, str]:
    """The folder of a training for which none was typed, and one line that says why where it is not `checkpoints/MODEL`.

    `checkpoints/MODEL` belongs to the recipe `models/MODEL.yaml` as it stands, and what is finished there is never overwritten.
    Raises UserError where `fresh` asks for just that.
    """
    name = Path(model).stem
    folder, own = Path("checkpoints") / name, Path("checkpoints") / f"{name}@{OWN}"
    shipped = next((place for models in models_folders() if (place := models / f"{name}.yaml").is_file()), Path(model))
    named = TrainRecipe.read(shipped)
    if weights_part(named) != weights_part(recipe):
        return own, f"not the recipe {shipped} ({differences(named, recipe)}): it is trained in {own}"
    if not (folder / "config.json").is_file():
        return folder, ""
    try:
        held = finished_recipe(folder)
    except UserError:
        held = None
    if held is None or weights_part(held) != weights_part(recipe):
        other = differences(held, recipe) if held else "its recipe.yaml cannot be read"
        return own, f"{folder} holds this model by another recipe ({other}): it is trained in {own}"
    if fresh:
        raise UserError(f"{folder} is finished, and is only overwritten where its path is typed: --out {folder} --fresh")
    return folder, ""
