"""Data sets from what a user types: a name, a file or a folder."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from robustbench_rkhs.data import NPY, NPZ, Data, DataSet, ImageFolder, data_root
from robustbench_rkhs.nodes.code_names import CLOSED, Code, is_code_name
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.one_of import names_of
from robustbench_rkhs.nodes.parsing import explain, parse, with_fields

SETS: dict[str, type[DataSet]] = {
    name: kind
    for name, kind in names_of(Data).items()
    if issubclass(kind, DataSet) and not any(field.is_required() for field in kind.model_fields.values())
}
"""The data sets that need only a name."""
_ANY: TypeAdapter[DataSet] = TypeAdapter(Data)


def named_data(name: str, code: Code = CLOSED) -> DataSet:
    """A data set by name, a .npz file, a folder of pictures, or one of x_test.npy and y_test.npy; `NAME:field=value,...`.

    Your own as `package.module:Name:field=value`, where `code` says that it may be imported. Raises UserError with a suggestion.
    """
    if is_code_name(name):
        try:
            own: DataSet = _ANY.validate_python(name, context={"code": code})
        except ValidationError as error:
            raise UserError(f"data {explain(error).removeprefix('recipe: ')}") from None
        return own
    place, _, rest = name.partition(":")
    place = place.lower() if place.lower() in SETS and not Path(place).is_dir() else place
    stored: dict[str, Any] = {"name": place}
    if place.endswith(".npz"):
        stored = {"name": NPZ.model_fields["name"].default, "path": place}
    elif place.endswith(".npy") or _holds_arrays(place):
        stored = {"name": NPY.model_fields["name"].default, "path": place}
    elif place not in SETS and (Path(place).is_dir() or (data_root() / place).is_dir() or place.endswith("/")):
        stored = {"name": ImageFolder.model_fields["name"].default, "path": place}
    elif place not in SETS:
        what = f"unknown data set {name!r}, and no FILE.npz or FOLDER/ either"
        raise UserError(f"{what}; {did_you_mean(place, SETS, listing='rkhs-list data')}")
    kinds: dict[str, type[DataSet]] = {**SETS, "npz": NPZ, "npy": NPY, "folder": ImageFolder}
    found: DataSet = parse(kinds[stored["name"]], with_fields(stored, rest, f"data {name!r}"), f"data {name!r}")
    return found


def _holds_arrays(place: str) -> bool:
    return place not in SETS and any((root / place / "x_test.npy").is_file() for root in (Path("."), data_root()))
