"""Models by name: from what a user types after --model to a model and its test images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from robustbench_rkhs.certificates import SmoothingCertificate
from robustbench_rkhs.data import DataSet, Split
from robustbench_rkhs.evaluation.predictions import classes_of
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.arguments import checked_arguments
from robustbench_rkhs.nodes.code_names import CLOSED, TYPED, Code, allowed
from robustbench_rkhs.nodes.limits import OWN, STRANGERS, Limits
from robustbench_rkhs.nodes.names import plain_name
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse, with_fields
from robustbench_rkhs.nodes.paths import find_checkpoint
from robustbench_rkhs.runtime.caller_context import own_context
from robustbench_rkhs.runtime.events import Message, OnEvent, PhaseStarted, emit, listening
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.zoo.builders import is_builder, load_builder
from robustbench_rkhs.zoo.data_names import SETS, named_data
from robustbench_rkhs.zoo.hub import fetched
from robustbench_rkhs.zoo.images import test_images
from robustbench_rkhs.zoo.models import adapted, as_module
from robustbench_rkhs.zoo.onnx_files import load_onnx
from robustbench_rkhs.zoo.stored import copied, is_stored
from robustbench_rkhs.zoo.timm_models import load_timm
from robustbench_rkhs.zoo.weights import SUFFIXES, fill_matched, read_weights


@dataclass(frozen=True)
class NamedModel:
    """A model with its name and test images."""

    name: str
    model: nn.Module
    data: Split | DataSet | None
    """Its test images, or a function that reads them when needed."""
    seed: int | None = None
    """The data set of its training, if known."""
    shape: tuple[int, ...] | None = None
    """The shape of its images, if known."""
    classes: int | None = None
    """Its number of classes, if known."""
    notes: tuple[str, ...] = ()
    """Warnings for the user, such as random weights."""

    def __post_init__(self) -> None:
        plain_name(self.name)  # names of result files contain it

    @cached_property
    @own_context(autocast=True)
    def test(self) -> Split:
        """The test images. Raises UserError where there are none, or none of its shape and classes."""
        if self.data is None:
            raise UserError(f"model {self.name!r} names no data: add --data (a data set, FILE.npz or a folder)")
        if isinstance(self.data, Split):
            return self.data
        found = test_images(self.data, self.shape, self._classes)
        if self.shape is not None and (found.shape != self.shape or found.classes != self.classes):
            raise UserError(
                f"model {self.name!r} takes {self.classes} classes of {self.shape}, "
                f"data set {found.data!r} has {found.classes} of {found.shape}"
            )
        return found

    def __call__(self, images: Tensor) -> Any:
        """What the model returns for these images."""
        return self.model(images)

    def _classes(self, split: Split) -> int:
        """The number of classes of the model; runs it once if unknown."""
        return self.classes or classes_of(adapted(self.model, split.x[:1]), split.x[:1])


@checked_arguments(checkpoint="weights", model="name")
@own_context(autocast=True)
def load_model(
    name: Any,
    weights: Any = None,
    data: Any = None,
    allow_code: Iterable[str] = (),
    *,
    on_event: OnEvent | None = None,
) -> NamedModel:
    """A model by name: a checkpoint's name or folder, a recipe with `weights`, your own code, or a model of a library.

    `nets.py:build`, `package.module:build`, either with arguments (`nets.py:build:width=8,depth=2`); `net.onnx`;
    `timm:resnet18.a1_in1k`; `hf:owner/name`, a Hub repository in the format of our checkpoint folders;
    `s3://bucket/name`, such a folder in an object store (extra `[remote]`). `weights`: .safetensors, or a file of torch.save, read
    with weights_only; `FILE:state_dict[0]` for a part of it. `data`: a data set's name, a file or a folder, instead of the
    recipe's; it is read when `.test` is accessed.
    `allow_code`: packages, modules, folders or .py files whose code a checkpoint folder here may name, `["mynets"]`; a recipe in
    it that names other code is refused, and nothing is imported. Warnings (such as random weights) are in `.notes` and are
    also events (`on_event`). Raises UserError in one line.
    """
    name, weights = _typed("name", name), None if weights is None else _typed("weights", weights)
    with listening(on_event):
        return _loaded(name, weights, data, allow_code)


def _loaded(name: str, weights: str | None, data: Any, allow_code: Iterable[str]) -> NamedModel:
    """The same, of checked names."""
    emit(PhaseStarted(phase=f"loading {name}"))
    images, code = named_data(_typed("data", data), TYPED) if data else None, allowed(allow_code)
    if name.startswith("timm:"):
        named = _timm(name, weights, images)
    elif weights is not None and (name.startswith("hf:") or is_stored(name)):
        raise UserError(f"model {name!r} holds its own weights: leave out --weights")
    elif name.startswith("hf:"):
        named = _from_afar(name, fetched(name.removeprefix("hf:")), images)
    elif is_stored(name):
        with TemporaryDirectory() as folder:
            named = _from_afar(name, copied(name, Path(folder)), images, code)
    elif name.endswith(".onnx"):
        named = _onnx(name, weights, images)
    elif name.endswith(".pt2"):
        raise UserError(f"model {name!r} is not read here: torch.export.load it in a function of yours, --model FILE.py:BUILDER")
    elif name.endswith((".safetensors", *SUFFIXES)):
        raise UserError(
            f"model {name!r} is a file of weights, not a network: --model NAME or FILE.py:BUILDER, with --weights {name}"
        )
    elif is_builder(name):
        named = _built(name, weights, images)
    elif weights is not None:
        named = _recipe(name, weights, images)
    else:
        named = _checkpoint(find_checkpoint(name), images, code)
    for line in named.notes:
        emit(Message(text=line))
    return replace(named, model=as_module(named.model))


def _typed(argument: str, value: Any) -> str:
    """What was typed, or would be. Raises UserError for what is neither text nor a path."""
    if not isinstance(value, str | Path):
        what = "nothing" if value is None else type(value).__name__
        raise UserError(f"load_model: {argument}: expected a name or a path, found {what}")
    return str(value)


def _checkpoint(folder: Path, data: DataSet | None, code: Code = CLOSED, limits: Limits = OWN) -> NamedModel:
    loaded = checkpoint.load(folder, code, limits)
    shape, classes = tuple(loaded.config["shape"]), int(loaded.config["classes"])
    return NamedModel(loaded.name, loaded.model, data or loaded.recipe.data, loaded.recipe.seed, shape, classes)


def _from_afar(name: str, folder: Path, data: DataSet | None, code: Code = CLOSED) -> NamedModel:
    """The checkpoint that was copied to FOLDER. Raises UserError where its recipe names files of this disk."""
    found = replace(_checkpoint(folder, data, code, STRANGERS), name=name.rstrip("/").rpartition("/")[2])
    if data is None and type(found.data) not in SETS.values():
        raise UserError(f"model {name!r}: its recipe names its own data; name them here by --data")
    return found


def _recipe(name: str, weights: str, data: DataSet | None) -> NamedModel:
    recipe = TrainRecipe.read(name)
    test = (data or recipe.data).test()
    model = checkpoint.build(recipe, test.shape, test.classes)
    name, notes = _filled(model, weights)
    return NamedModel(name, model.eval(), test, notes=notes)


def _filled(model: nn.Module, weights: str) -> tuple[str, tuple[str, ...]]:
    """Load weights into the model; a name for it, and what is to be said about the file."""
    read = read_weights(weights)
    renamed = fill_matched(model, read, weights)
    return read.name, tuple(line for line in (read.said, f"{weights}: {renamed}" if renamed else "") if line)


def _built(name: str, weights: str | None, data: DataSet | None) -> NamedModel:
    model, title = load_builder(name)
    if weights is None:
        return NamedModel(title, model.eval(), data, notes=(random_weights(name, model),) if _any(model) else ())
    name, notes = _filled(model, weights)
    return NamedModel(name, model.eval(), data, notes=notes)


def _onnx(name: str, weights: str | None, data: DataSet | None) -> NamedModel:
    if weights is not None:
        raise UserError(f"model {name!r} holds its own weights: leave out --weights")
    found = load_onnx(Path(name))
    baked = f"{name} was exported for batches of {found.batch}: its graph is run on any number of images, which was compared"
    return NamedModel(Path(name).stem, found.model, data, notes=() if found.batch is None else (baked,))


def _timm(name: str, weights: str | None, data: DataSet | None) -> NamedModel:
    made = load_timm(name.removeprefix("timm:"), pretrained=weights is None)
    notes = made.notes if weights is None else (*made.notes, *_filled(made.net, weights)[1])
    return NamedModel(made.name, made.model.eval(), data, shape=made.shape, classes=made.classes, notes=notes)


def random_weights(name: str, model: nn.Module) -> str:
    """The warning about a builder without weights."""
    return f"WARNING: model {name!r} has the weights from its builder, random ones unless it loads its own: --weights FILE"


def _any(model: nn.Module) -> bool:
    return next(iter(model.parameters()), None) is not None


def load_twin(name: str, data: str | None, models: Sequence[NamedModel], allow_code: Iterable[str] = ()) -> nn.Module:
    """The undefended twin of these models, by name as for `load_model`. Raises UserError if its data or classes differ."""
    twin = load_model(name, None, data, allow_code=allow_code)
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


def normalised(named: NamedModel, mean: Sequence[float], std: Sequence[float]) -> NamedModel:
    """The model behind a first layer that normalises its images by (x - mean) / std, a number each or one per channel.

    The layer is part of the function, of its key and of its certificates; without numbers the model as it is. Raises UserError.
    """
    if not mean and not std:
        return named
    if named.test.box != "unit":
        raise UserError(f"data set {named.test.data!r} does not lie in [0, 1]: leave out --mean and --std")
    return replace(named, model=adapted(named.model, named.test.x[:1], (tuple(mean) or (0.0,), tuple(std) or (1.0,))))


def smoothed(named: NamedModel, sigma: float, **votes: int) -> NamedModel:
    """The model smoothed by Gaussian noise, as a separate model with its own name and digest."""
    model = Smoothed(named.model, sigma, **votes).eval()
    return replace(named, name=f"{named.name}~smoothed-{sigma:g}", model=model)


def training_images(name: str, data: str | None = None, allow_code: Iterable[str] = ()) -> Split:
    """The training images of a model: of `data` if given, else of its checkpoint's or its own recipe."""
    if data:
        return named_data(data, TYPED).load().train
    try:
        return checkpoint.load(find_checkpoint(name), allowed(allow_code)).recipe.data.load().train
    except UserError:
        return TrainRecipe.read(name).data.load().train
