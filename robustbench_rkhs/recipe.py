"""Every knob there is. YAML in, resolved YAML out."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from robustbench_rkhs.adaptive import Adaptive
from robustbench_rkhs.attacks import AnyAttack
from robustbench_rkhs.attacks.efforts import Effort
from robustbench_rkhs.attacks.foolbox import Method as FoolboxMethod
from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.attacks.unrolled import unrollable
from robustbench_rkhs.certificates import Portfolio, certificate_names
from robustbench_rkhs.data import Data
from robustbench_rkhs.losses import CrossEntropy, Loss
from robustbench_rkhs.networks import Network
from robustbench_rkhs.node import Node, Real, UserError, did_you_mean
from robustbench_rkhs.optimizers import SGD, Constant, Optimizer, Schedule
from robustbench_rkhs.penalties import Penalty
from robustbench_rkhs.places import find_recipe
from robustbench_rkhs.projections import SpectralProjection


def seconds(value: Any) -> Any:
    """A time such as `90`, `90s`, `10min` or `2h` in seconds; anything else unchanged for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([0-9.]+)\s*(s|min|h)?\s*", value)
    try:
        return float(found[1]) * {None: 1, "s": 1, "min": 60, "h": 3600}[found[2]] if found else float("")
    except ValueError:
        raise ValueError(f"expected a time such as 90, 90s, 10min or 2h, found {value!r}") from None


Seconds = Annotated[Real, BeforeValidator(seconds), Field(gt=0)]
"""A time, in seconds."""


class TrainRecipe(Node):
    """Train one named model. The step: attack the batch, add loss and penalties, step, project."""

    about: str = ""
    """What this model is, in a sentence."""
    data: Data
    """Data set, its subset, validation and augmentation."""
    network: Network
    """What is trained."""
    loss: Loss = CrossEntropy()
    """Lowered on the (attacked) batch."""
    attack: PGD | None = None
    """Adversarial training: the batch is replaced by what this attack makes of it."""
    noise: Real = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise added to the training images before the attack, not clamped to [0, 1]; validation
    images bear the same. For smoothed classifiers. Penalties see the images without it."""
    attack_warmup: Real = Field(0.0, ge=0, le=1)
    """Share of the training in which the attack's eps and step size rise linearly from 0."""
    penalties: tuple[Penalty, ...] = ()
    """Added to the loss, on the clean batch."""
    adaptive: tuple[Adaptive, ...] = ()
    """Penalty weights that follow what validation measures."""
    projections: tuple[SpectralProjection, ...] = ()
    """Weights back into a set after every step."""
    optimizer: Optimizer = SGD()
    """How a gradient becomes a step."""
    schedule: Schedule = Constant()
    """Learning rate over the training."""
    start_from: str | None = None
    """A trained checkpoint, by name or folder, whose weights the training starts from: the second of two stages."""
    epochs: int = Field(10, ge=1)
    """Passes over the training images."""
    seconds: Seconds | None = None
    """Seconds (or 90s, 10min, 2h) after which the training ends, if `epochs` have not ended it before. Learning rate, ramps and
    warm-ups then follow the larger of two shares, of the epochs and of the time since the first step, so that it always ends
    annealed. Such a training is known by its number of steps, which metrics.jsonl records; it cannot be repeated bit for bit."""
    batch_size: int = Field(128, ge=1)
    """Images a step."""
    seed: int = Field(0, ge=0)
    """Initial weights, order, augmentation, dropout."""
    ema: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """Decay of a running mean of the weights, which is then what is validated and saved."""
    clip: Annotated[Real, Field(gt=0)] | None = None
    """Gradients longer than this l2 norm, over all weights together, are shortened to it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the training passes (autocast); weights, validation and evaluation stay float32."""
    channels_last: bool = False
    """Memory format of convolutions; faster on most machines."""
    on_device: bool = False
    """Steps of one fixed shape that ask nothing of the host: order, augmentation and random starts are made on the device, random
    numbers hashed there (the same on every device, but others than those of an ordinary step), the attack takes every step on every
    image. On CUDA the step is captured as a graph and replayed. What cannot be captured runs step by step."""
    compile: bool = False
    """Compile the passes of an `on_device` step by torch.compile; where that fails they run as they are. It pays on a GPU."""
    validate_with: PGD | None = None
    """Attack by which validation robust accuracy is measured and the best checkpoint chosen; clean accuracy where none."""
    certify_eps: Annotated[Real, Field(ge=0)] | None = None
    """l2 radius, in pixels of [0, 1], at which validation counts the images that the margin certificate proves; it chooses the best
    checkpoint where there is no `validate_with`."""
    validate_every: int = Field(1, ge=1)
    """Epochs from one validation to the next; the last epoch is always validated."""

    @model_validator(mode="after")
    def _parts_agree(self) -> "TrainRecipe":
        if self.loss.attacks and self.attack is not None:
            raise ValueError(f"loss {self.loss.name!r} perturbs the images itself: leave `attack` out")
        for one in self.adaptive:
            if one.penalty >= len(self.penalties):
                raise ValueError(f"adaptive: no penalty {one.penalty}, found {len(self.penalties)} penalties (counted from 0)")
            if one.measure == "robust" and self.validate_with is None:
                raise ValueError("adaptive: measure 'robust' needs validate_with, found none")
            if not self.data.validation:
                raise ValueError("adaptive: what it measures is validation, found data.validation 0")
        self._fit_the_task()
        return self

    @model_validator(mode="after")
    def _fits_the_device(self) -> "TrainRecipe":
        if self.compile and not self.on_device:
            raise ValueError("compile: it is for steps that are on_device, found on_device false")
        if self.on_device and self.noise:
            raise ValueError(f"on_device: noise is drawn on the host, found noise {self.noise:g}")
        if self.on_device and self.attack is not None and (reason := unrollable(self.attack)):
            raise ValueError(f"on_device: the attack must take the same steps on every image, found {reason}")
        return self

    @model_validator(mode="after")
    def _noise_leaves_the_box(self) -> "TrainRecipe":
        for key in ("attack", "validate_with", "loss") if self.noise else ():
            if keeps_to_the_box(getattr(self, key)):
                raise ValueError(f"noise takes images out of [0, 1]: give {key} box none, found box unit")
        return self

    def _fit_the_task(self) -> None:
        """What needs classes gets classes, and what stays in [0, 1] gets images that lie there."""
        set_name = self.data.title
        if self.data.task == "regression":
            parts = [self.loss, *self.penalties]
            needy = [repr(part.name) for part in parts if not part.regression]
            needy += [key for key in ("attack", "validate_with", "adaptive", "certify_eps") if getattr(self, key)]
            if needy:
                raise ValueError(f"data set {set_name!r} is a regression, which has no classes: {', '.join(needy)} cannot be used")
        if self.data.box == "none":
            for key in ("attack", "validate_with", "loss", "penalties"):
                if keeps_to_the_box(getattr(self, key)):
                    raise ValueError(f"data set {set_name!r} does not lie in [0, 1]: give {key} box none, found box unit")

    @classmethod
    def read(cls, source: str | Path, overrides: dict[str, str] | None = None) -> "TrainRecipe":
        """A recipe by name (models/NAME.yaml) or path, with dotted overrides. Raises UserError in one line."""
        path = find_recipe(str(source))
        try:
            stored = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a readable recipe: {' '.join(str(error).split())[:160]}") from None
        if not isinstance(stored, dict):
            raise UserError(f"{path}: expected a mapping of recipe fields, found {type(stored).__name__}")
        for key, value in (overrides or {}).items():
            override(stored, key, value)
        return cls.parse(stored, str(path))

    @classmethod
    def parse(cls, stored: dict[str, Any], source: str = "recipe") -> "TrainRecipe":
        """A recipe from a mapping. Raises UserError in one line."""
        return parse(cls, stored, source)

    def yaml(self) -> str:
        """The resolved recipe: every field, default or not."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class EvalRecipe(Node):
    """How a model is evaluated: norm, radii, attacks, certificates, images."""

    norm: Literal["l2", "linf"] = "l2"
    """Distance the radii are measured in."""
    eps: tuple[Annotated[Real, Field(ge=0)], ...]
    """Asked-for radii, in pixels of [0, 1]."""
    attacks: tuple[AnyAttack, ...] = ()
    """The protocol: minimal-norm attacks, then the others, each on what still stands. Empty: what `effort` says."""
    effort: Effort = "standard"
    """The protocol where no attack is named. quick: the union of the minimal-norm attacks. standard: cheap minimal-norm attacks,
    then the full ensemble at the largest eps that is open. adaptive: the same with what still pays of the ensemble."""
    certificates: Portfolio = Field(("portfolio",), validate_default=True)
    """Certificates, cheapest first, each on the images that those before left open; `portfolio` is all of them, empty none."""
    certify_seconds: Annotated[Real, Field(gt=0)] | None = None
    """Time limit of each certificate; images it does not reach are marked `timeout`. None: as long as it takes."""
    samples: int | None = Field(None, ge=1)
    """Test images, a seeded stratified subset; all where not given."""
    seed: int = Field(0, ge=0)
    """Which images, and every random draw of the attacks."""
    block: int = Field(100, ge=1)
    """Images a block: bounds the memory. Random draws of library attacks depend on it."""
    workers: int = Field(1, ge=1)
    """Processes that take a block each of our own attacks, on a CPU, one thread each: the table is that of one process on one
    thread. Not shared: attacks of libraries, and effort adaptive, which learns from image to image."""
    budget: Seconds | None = None
    """Seconds (or 90s, 10min, 2h) after which no further part is begun: certificates stop at half of it, attacks at its end (a
    block of a library's attack and the diagnosis are not cut). Images not reached are untested. It changes nothing else, and the
    same evaluation without it goes on from there."""
    rechecked: int = Field(8, ge=0)
    """Of the survivals that are inferred from a larger eps, how many are attacked at their own eps after all; the share that falls
    is reported. Cost: at most so many runs of the fixed-budget attacks."""
    diagnostics: bool = True
    """Check on a sample of images whether attacks can be believed, mark the model where not, and attack its survivors further.
    False: the result is marked undiagnosed."""

    @model_validator(mode="after")
    def _effort_or_attacks(self) -> "EvalRecipe":
        if self.attacks and self.effort != "standard":
            raise ValueError(f"effort {self.effort!r} chooses the attacks itself: leave out the attacks, or the effort")
        return self


def keeps_to_the_box(part: Any) -> bool:
    """Whether a part of a recipe, or a part of that part, keeps what it perturbs in [0, 1]."""
    if isinstance(part, tuple):
        return any(keeps_to_the_box(one) for one in part)
    if not isinstance(part, Node):
        return False
    return getattr(part, "box", "none") == "unit" or any(keeps_to_the_box(value) for _, value in part)


def parse(kind: type[Any], stored: dict[str, Any], source: str) -> Any:
    """A validated node; what pydantic finds becomes one line that names the place."""
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first thing pydantic found, in one line with its place."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "recipe"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":
        known = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        message = f"unknown name {first['ctx']['tag']!r}; {did_you_mean(first['ctx']['tag'], known)}"
    elif first["type"] not in ("value_error", "missing"):
        message = f"{message[0].lower()}{message[1:]}, found {str(first['input'])[:80]!r}"
    others = error.error_count() - 1
    return f"{place}: {message}" + (f" (and {others} more)" if others else "")


def override(stored: dict[str, Any], key: str, text: str) -> None:
    """Set a dotted field (`attack.eps`, `penalties.0.weight`) of a mapping to a YAML value.

    A new `name` clears the fields beside it, which belong to another method; those given after it stay.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    at: Any = stored
    parts = key.split(".")
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                raise UserError(f"--{key}: expected a position from 0 to {len(at) - 1}, found {part!r}")
            step: Any = int(part)
        elif isinstance(at, dict):
            step = part
        else:
            raise UserError(f"--{key}: {part!r} is below a plain value")
        if after is None:
            if step == "name" and at.get("name") not in (None, value):
                at.clear()  # another method: the old one's fields mean nothing to it
            at[step] = value
            return
        if isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]


ATTACKS = {kind.model_fields["name"].default for kind in get_args(get_args(AnyAttack)[0])}
"""Names of attacks."""
FOOLBOX = set(get_args(FoolboxMethod)) - ATTACKS
"""Names that stand for an attack of foolbox, where none of ours has that name."""


def certificate_from(text: str) -> Any:
    """`NAME` or `NAME:field=value,...` as typed after --certify; `portfolio` stays a word."""
    name, _, rest = text.partition(":")
    known = ["portfolio", "none", *certificate_names()]
    if name not in known or (rest and name in known[:2]):
        raise UserError(f"unknown certificate {text!r}; {did_you_mean(name, known)}")
    return with_fields({"name": name}, rest, f"certificate {text!r}") if rest else name


def attack_from(text: str) -> Any:
    """`NAME` or `NAME:field=value,...` as typed after --attack, as a mapping for a recipe.

    A library attack's own name stands for it, where we have none of that name: `cw` for `foolbox:attack=cw`.
    Raises UserError with a suggestion.
    """
    name, _, rest = text.partition(":")
    stored: dict[str, Any] = {"name": "foolbox", "attack": name} if name in FOOLBOX else {"name": name}
    if name not in ATTACKS | FOOLBOX:
        raise UserError(f"unknown attack {name!r}; {did_you_mean(name, ATTACKS | FOOLBOX)}")
    return with_fields(stored, rest, f"attack {text!r}")


def with_fields(stored: dict[str, Any], rest: str, source: str) -> dict[str, Any]:
    """The mapping with `field=value,...` set in it."""
    for pair in re.split(r",(?![^\[]*\])", rest) if rest else []:
        field, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{source}: expected field=value, found {pair!r}")
        override(stored, field.strip(), value)
    return stored
