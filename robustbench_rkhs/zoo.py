"""From what a user types after --model to a model and its test images."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from torch import nn

from robustbench_rkhs.certificates import SmoothingCertificate
from robustbench_rkhs.data import NPZ, Data, DataSet, Split
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.parsing import parse, with_fields
from robustbench_rkhs.nodes.paths import find_checkpoint
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe

SETS: dict[str, type[DataSet]] = {
    kind.model_fields["name"].default: kind
    for kind in get_args(get_args(Data)[0])
    if not any(field.is_required() for field in kind.model_fields.values())
}
"""Every data set that needs no more than its name."""


@dataclass(frozen=True)
class NamedModel:
    """A model, its name and the images it is tested on."""

    name: str
    model: nn.Module
    test: Split
    seed: int | None = None
    """Of its training, where that is known."""


def load_model(name: str, weights: str | None = None, data: str | None = None) -> NamedModel:
    """A checkpoint by name or folder; a recipe with `weights` (.safetensors or .pth); or `package.module:builder`.

    `data`: a data set's name or a .npz file, in place of the recipe's. Raises UserError in one line.
    """
    if ":" in name:
        return _built(name, weights, data)
    if weights is not None:
        recipe = TrainRecipe.read(name)
        test = named_data(data).test() if data else recipe.data.test()
        model = checkpoint.build(recipe, test.shape, test.classes)
        checkpoint.fill(model, checkpoint.read_weights(Path(weights)), weights)
        return NamedModel(Path(weights).stem, model.eval(), test)
    folder = find_checkpoint(name)
    loaded = checkpoint.load(folder)
    test = named_data(data).test() if data else loaded.recipe.data.test()
    if test.shape != tuple(loaded.config["shape"]) or test.classes != loaded.config["classes"]:
        raise UserError(
            f"model {name!r} takes {loaded.config['classes']} classes of {tuple(loaded.config['shape'])}, "
            f"data set {test.data!r} has {test.classes} of {test.shape}"
        )
    return NamedModel(loaded.name, loaded.model, test, loaded.recipe.seed)


def load_twin(name: str, data: str | None, models: Sequence[NamedModel]) -> nn.Module:
    """The undefended twin of these models, by name as for `load_model`. Raises UserError where its data or classes are others."""
    twin = load_model(name, None, data)
    for one in models:
        if twin.test.digest != one.test.digest:
            found, expected = (f"{test.data!r} ({test.classes} classes of {test.shape})" for test in (twin.test, one.test))
            raise UserError(f"twin {name!r}: expected a network of the data of {one.name!r}, {expected}, found one of {found}")
    return twin.model


def smoothing_from(text: str, seed: int = 0) -> tuple[dict[str, int], SmoothingCertificate]:
    """`sigma=0.25,n=10000,...` as typed after --smooth: the votes of the classifier, and its certificate. Raises UserError."""
    stored = with_fields({"name": "smoothing", "seed": seed}, text, "--smooth")
    votes: dict[str, int] = {str(key): stored.pop(key) for key in ("votes", "recount") if key in stored}
    certify: SmoothingCertificate = parse(SmoothingCertificate, stored, "--smooth")
    if certify.sigma is None:
        raise UserError(f"--smooth: expected sigma=0.25 or another standard deviation of the noise, found {text!r}")
    return votes, certify


def smoothed(named: NamedModel, sigma: float, **votes: int) -> NamedModel:
    """The model under Gaussian noise, as a model of its own: own name, own digest."""
    model = Smoothed(named.model, sigma, **votes).eval()
    return replace(named, name=f"{named.name}~smoothed-{sigma:g}", model=model)


def training_images(name: str, data: str | None = None) -> Split:
    """The images a model was trained on: of `data` where given, else of its checkpoint's or its own recipe."""
    if data:
        return named_data(data).load().train
    try:
        return checkpoint.load(find_checkpoint(name)).recipe.data.load().train
    except UserError:
        return TrainRecipe.read(name).data.load().train


def named_data(name: str) -> DataSet:
    """A data set by name, or a .npz file. Raises UserError with a suggestion."""
    if name.endswith(".npz"):
        return NPZ(path=name)
    if name not in SETS:
        raise UserError(f"unknown data set {name!r}; {did_you_mean(name, [*SETS, 'FILE.npz'])}")
    return SETS[name]()


def _built(name: str, weights: str | None, data: str | None) -> NamedModel:
    """The user's own code: importing it runs it, which is why it is only ever taken from the command line."""
    module_name, _, builder_name = name.partition(":")
    if data is None:
        raise UserError(f"model {name!r} is built by code and names no data: add --data (a data set or FILE.npz)")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"cannot import {module_name!r}: {error}") from None
    builder = getattr(module, builder_name, None)
    if not callable(builder):
        raise UserError(f"{module_name!r} has no callable {builder_name!r}; {did_you_mean(builder_name, vars(module))[:200]}")
    model = builder()
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} returned {type(model).__name__}, expected an nn.Module")
    if weights is not None:
        checkpoint.fill(model, checkpoint.read_weights(Path(weights)), weights)
    return NamedModel(builder_name if weights is None else Path(weights).stem, model.eval(), named_data(data).test())
