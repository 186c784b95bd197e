"""Where named things lie: models/ and checkpoints/, of the working directory or beside the package."""

from pathlib import Path

from robustbench_rkhs.nodes.node import UserError, did_you_mean

BESIDE = Path(__file__).resolve().parent.parent.parent


def models_folder() -> Path:
    """`models/` of the working directory, else the one beside the package."""
    return Path("models") if Path("models").is_dir() else BESIDE / "models"


def checkpoints_folder() -> Path:
    """`checkpoints/` of the working directory, else the one beside the package."""
    return Path("checkpoints") if Path("checkpoints").is_dir() else BESIDE / "checkpoints"


def find_recipe(name: str) -> Path:
    """The YAML file a model's name or a path means. Raises UserError with a suggestion."""
    return _find(name, models_folder(), "recipe", "model")


def find_sweep(name: str) -> Path:
    """The YAML file a sweep's name (models/sweeps/NAME.yaml) or a path means. Raises UserError with a suggestion."""
    return _find(name, models_folder() / "sweeps", "sweep", "sweep")


def _find(name: str, folder: Path, file: str, named: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"no {file} {name!r}")
    path = folder / f"{name}.yaml"
    if "/" not in name and path.is_file():
        return path
    known = [found.stem for found in folder.glob("*.yaml")]
    raise UserError(f"unknown {named} {name!r}; {did_you_mean(name, known)}")


def find_checkpoint(name: str) -> Path:
    """The folder a name or path means. Raises UserError that says whether it is unknown or only untrained."""
    for folder in (Path(name), checkpoints_folder() / name):
        if (folder / "config.json").is_file() or ("/" in name and folder.is_dir()):
            return folder
    recipes = {path.stem for path in models_folder().glob("*.yaml")}
    if name in recipes:
        raise UserError(f"model {name!r} has a recipe but no finished checkpoint: rkhs-train --model {name}")
    trained = {path.parent.name for path in checkpoints_folder().glob("*/config.json")}
    raise UserError(f"unknown model {name!r}; {did_you_mean(name, recipes | trained)}")
