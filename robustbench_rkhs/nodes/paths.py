"""Where named things lie: models/ and checkpoints/ of the working directory, beside the package, or inside an installed one."""

from pathlib import Path

from robustbench_rkhs.nodes.node import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED = PACKAGE / "_shipped"
"""The recipes and small checkpoints inside an installed package; a source tree has them beside the package."""
BESIDE = SHIPPED if SHIPPED.is_dir() else PACKAGE.parent


def models_folder() -> Path:
    """`models/` of the working directory, else the one that came with the package."""
    return Path("models") if Path("models").is_dir() else BESIDE / "models"


def checkpoints_folder() -> Path:
    """`checkpoints/` of the working directory, else the one that came with the package."""
    return Path("checkpoints") if Path("checkpoints").is_dir() else BESIDE / "checkpoints"


def find_recipe(name: str) -> Path:
    """The YAML file a model's name or a path means. Raises UserError with a suggestion."""
    return _find(name, "", "recipe", "model")


def find_sweep(name: str) -> Path:
    """The YAML file a sweep's name (models/sweeps/NAME.yaml) or a path means. Raises UserError with a suggestion."""
    return _find(name, "sweeps", "sweep", "sweep")


def _find(name: str, below: str, file: str, named: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"no {file} {name!r}")
    folders = [folder / below for folder in (models_folder(), BESIDE / "models")]
    for path in [folder / f"{name}.yaml" for folder in folders]:
        if "/" not in name and path.is_file():
            return path
    known = {found.stem for folder in folders for found in folder.glob("*.yaml")}
    raise UserError(f"unknown {named} {name!r}; {did_you_mean(name, known)}")


def find_checkpoint(name: str) -> Path:
    """The folder a name or path means. Raises UserError that says whether it is unknown, untrained or without its weights."""
    for folder in (Path(name), checkpoints_folder() / name, BESIDE / "checkpoints" / name):
        if (folder / "config.json").is_file() or ("/" in name and folder.is_dir()):
            if folder.is_relative_to(SHIPPED) and not (folder / "model.safetensors").is_file():
                raise UserError(
                    f"the weights of {name!r} are too large for an installed package: copy checkpoints/{name} of the source "
                    f"repository to checkpoints/{name} here, or train them: rkhs-train --model {name}"
                )
            return folder
    recipes = {path.stem for folder in (models_folder(), BESIDE / "models") for path in folder.glob("*.yaml")}
    if name in recipes:
        raise UserError(f"model {name!r} has a recipe but no finished checkpoint: rkhs-train --model {name}")
    trained = {path.parent.name for at in (checkpoints_folder(), BESIDE / "checkpoints") for path in at.glob("*/config.json")}
    raise UserError(f"unknown model {name!r}; {did_you_mean(name, recipes | trained)}")
