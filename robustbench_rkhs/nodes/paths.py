"""Search paths of recipes and checkpoints: the working directory, then the source tree or the installed package."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from robustbench_rkhs.nodes.missing import missing
from robustbench_rkhs.nodes.node import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED = PACKAGE / "_shipped"
"""The recipes and small checkpoints inside an installed package; in a source tree they are next to the package."""
BESIDE = SHIPPED if SHIPPED.is_dir() else PACKAGE.parent


def data_root() -> Path:
    """`RKHS_DATA`, else `data/`."""
    return Path(os.environ.get("RKHS_DATA") or "data")


def models_folder() -> Path:
    """`models/` of the working directory, else the one that came with the package."""
    return Path("models") if Path("models").is_dir() else BESIDE / "models"


def checkpoints_folder() -> Path:
    """`checkpoints/` of the working directory, else the one that came with the package."""
    return Path("checkpoints") if Path("checkpoints").is_dir() else BESIDE / "checkpoints"


def models_folders() -> list[Path]:
    """Search path of recipes: `models/` of the working directory first, then the one next to the package."""
    return _both("models")


def checkpoints_folders() -> list[Path]:
    """Search path of checkpoints: `checkpoints/` of the working directory first, then the one next to the package."""
    return _both("checkpoints")


def _both(name: str) -> list[Path]:
    places = (Path(name), BESIDE / name)
    return [place for place in places if place.is_dir() and not (place is places[1] and _same(*places))]


def _same(one: Path, other: Path) -> bool:
    return one.is_dir() and one.samefile(other)


def find_recipe(name: str) -> Path:
    """The recipe file for a model name or path. Raises UserError with a suggestion."""
    if name.partition(":")[2] or name.endswith(".py"):
        raise UserError(
            f"expected a name in models/ or a .yaml recipe, found {name!r}: code is named inside a recipe, as `network: {name}`"
        )
    return _find(name, models_folders(), "recipe", "model", "rkhs-list models")


def is_own(path: Path) -> bool:
    """Whether a recipe lies in the user's own models/ (or in ours), where it may name code."""
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in models_folders())


def find_sweep(name: str) -> Path:
    """The sweep file for a name (models/sweeps/NAME.yaml) or path. Raises UserError with a suggestion."""
    return _find(name, [folder / "sweeps" for folder in models_folders()], "sweep", "sweep")


def _find(name: str, folders: list[Path], file: str, named: str, listing: str = "") -> Path:
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"no {file} {name!r}")
    for folder in folders:
        path = folder / f"{name}.yaml"
        if "/" not in name and path.is_file():
            return path
    known = {found.stem for folder in folders for found in folder.glob("*.yaml")}
    raise UserError(f"unknown {named} {name!r}; {did_you_mean(name, known, listing=listing)}")


def check_names(names: Iterable[str], weights: object = None, data: object = None) -> None:
    """Refuse words that name no model and files that are not there, as loading would, but before anything large is imported.

    Raises UserError.
    """
    for name in names:
        file, _, builder = name.partition(":")
        if re.fullmatch(r"[\w@-]+", name):
            find_checkpoint(name) if weights is None else find_recipe(name)
        elif "://" in name or name.startswith(("timm:", "hf:")):
            continue  # looked for elsewhere
        elif name.endswith(".onnx") and not _is_file(name):
            raise missing("ONNX file", name)
        elif builder and file.endswith(".py") and not _is_file(file):
            raise missing("Python file", file)
    whole = str(weights or "")
    if whole and not any(_is_file(one) for one in (whole, whole.rpartition(":")[0]) if one):
        raise missing("weights file", whole)
    if not isinstance(data, str) or not data.endswith(".npz") or ":" in data:
        return
    if not _is_file(data) and not _is_file(data_root() / data):
        raise missing("file", data, f" here or in data root {str(data_root())!r}")


def _is_file(path: str | Path) -> bool:
    """Whether it is a file; a name that no file can have is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def find_checkpoint(name: str) -> Path:
    """The checkpoint folder for a name or path. Raises UserError that says if it is unknown, untrained or without weights.

    The name may be that of a changed recipe: `robust_vgg@mine` is `checkpoints/robust_vgg@mine`.
    """
    for folder in (Path(name), *(folder / name for folder in checkpoints_folders())):
        if (folder / "config.json").is_file() or ("/" in name and folder.is_dir()):
            if folder.is_relative_to(SHIPPED) and not (folder / "model.safetensors").is_file():
                raise UserError(
                    f"the weights of {name!r} are too large for an installed package: copy checkpoints/{name} of the source "
                    f"repository to checkpoints/{name} here, or train them: rkhs-train --model {name}"
                )
            return folder
    recipes = {path.stem for folder in models_folders() for path in folder.glob("*.yaml")}
    if name in recipes:
        raise UserError(f"model {name!r} has a recipe but no finished checkpoint: rkhs-train --model {name}")
    if any((folder / name / "resume.pt").is_file() for folder in checkpoints_folders()):
        raise UserError(f"model {name!r} has unfinished training: repeat the rkhs-train command that started it to resume")
    trained = {path.parent.name for folder in checkpoints_folders() for path in folder.glob("*/config.json")}
    raise UserError(f"unknown model {name!r}; {did_you_mean(name, recipes | trained, listing='rkhs-list models')}")
