"""TrainRecipe: every setting of a training. YAML in, resolved YAML out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.attacks.unrolled import unrollable
from robustbench_rkhs.data import Data
from robustbench_rkhs.networks import Network
from robustbench_rkhs.nodes.code_names import CLOSED, TYPED, Code, code_in
from robustbench_rkhs.nodes.documents import read_text, yaml_of
from robustbench_rkhs.nodes.node import Node, Real, Seconds, Seed, UserError
from robustbench_rkhs.nodes.overrides import as_value, override_all
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.paths import find_recipe, is_own
from robustbench_rkhs.runtime.events import Message, OnEvent, emit, listening
from robustbench_rkhs.training.adaptive import Adaptive
from robustbench_rkhs.training.losses import CrossEntropy, Loss, LossNode
from robustbench_rkhs.training.optimizers import SGD, Constant, Optimizer, Schedule
from robustbench_rkhs.training.penalties import Penalty, PenaltyNode
from robustbench_rkhs.training.projections import SpectralProjection


def several(value: Any) -> Any:
    """One method, as text, a mapping or an instance, as a tuple of one; several as they are."""
    return (value,) if isinstance(value, (str, dict, Node)) else value


class TrainRecipe(Node):
    """Train one named model. The step: attack the batch, add loss and penalties, step, project."""

    about: str = ""
    """One sentence on what this model is."""
    data: Data
    """Data set, its subset, validation and augmentation."""
    network: Network
    """The network that is trained."""
    loss: Loss = CrossEntropy()
    """Minimised on the (attacked) batch."""
    attack: PGD | None = None
    """Adversarial training: the attack that perturbs each batch."""
    noise: Real = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise added to the training images before the attack, not clamped to [0, 1]; validation
    images get the same. For smoothed classifiers. Penalties get the images without it."""
    attack_warmup: Real = Field(0.0, ge=0, le=1)
    """Share of the training in which the attack's eps and step size rise linearly from 0."""
    penalties: Annotated[tuple[Penalty, ...], BeforeValidator(several)] = ()
    """Added to the loss, on the clean batch."""
    adaptive: tuple[Adaptive, ...] = ()
    """Penalty weights that follow a number measured on validation."""
    projections: tuple[SpectralProjection, ...] = ()
    """Projections of the weights onto a set after every step."""
    optimizer: Optimizer = SGD()
    """The optimiser."""
    schedule: Schedule = Constant()
    """The learning-rate schedule."""
    start_from: str | None = None
    """A trained checkpoint, by name or folder, whose weights the training starts from: the second of two stages."""
    epochs: int = Field(10, ge=1)
    """Passes over the training images."""
    seconds: Seconds | None = None
    """Seconds (or 90s, 10min, 2h) after which the training ends, if `epochs` have not ended it before. Learning rate, ramps and
    warm-ups then follow the larger of two shares, of the epochs and of the time since the first step, so that it always ends
    annealed. metrics.jsonl records the number of steps; such a training cannot be repeated bit for bit."""
    batch_size: int = Field(128, ge=1)
    """Images per step."""
    accumulate: int = Field(1, ge=1)
    """Parts in which the images of a step go through, one after the other, whose gradients are added up: as many times less memory,
    the same mean over images. A penalty that is a supremum over the batch becomes the mean of the parts' suprema."""
    seed: Seed = 0
    """Seed of the initial weights, the order of images, augmentation and dropout."""
    ema: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """Decay of a running mean of the weights; the mean is then validated and saved."""
    clip: Annotated[Real, Field(gt=0)] | None = None
    """Gradient clipping: the largest l2 norm of the gradient of all weights together."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the training passes (autocast); weights, validation and evaluation stay float32."""
    channels_last: bool = False
    """Memory format of convolutions; faster on most machines."""
    on_device: bool = False
    """Steps of fixed shape without waits for the host: order, augmentation and random starts are computed on the device, with
    random numbers hashed there (the same on every device, but different from those of an ordinary step), and the attack takes
    every step on every image. On CUDA the step is captured as a graph and replayed; if that fails, it runs without capture."""
    compile: bool = False
    """Compile the passes of an `on_device` step by torch.compile; if that fails, they run uncompiled. Worthwhile on a GPU."""
    validate_with: PGD | None = None
    """Attack that measures robust accuracy on validation, by which the best checkpoint is chosen; default: clean accuracy."""
    certify_eps: Annotated[Real, Field(ge=0)] | None = None
    """l2 radius, in pixels of [0, 1], at which validation counts the images certified by the margin certificate; chooses the best
    checkpoint if there is no `validate_with`."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations; the last epoch is always validated."""

    @model_validator(mode="after")
    def _parts_agree(self) -> "TrainRecipe":
        if self.loss.attacks and self.attack is not None:
            raise ValueError(f"loss {self.loss.label!r} perturbs the images itself: leave `attack` out")
        for one in self.adaptive:
            if one.penalty >= len(self.penalties):
                raise ValueError(f"adaptive: no penalty {one.penalty}, found {len(self.penalties)} penalties (counted from 0)")
            if one.measure == "robust" and self.validate_with is None:
                raise ValueError("adaptive: measure 'robust' needs validate_with, found none")
            if not self.data.validation:
                raise ValueError("adaptive: it needs validation images, found data.validation 0")
        self._fit_the_task()
        return self

    @model_validator(mode="after")
    def _fits_the_device(self) -> "TrainRecipe":
        if self.compile and not self.on_device:
            raise ValueError("compile: expected on_device true, found false")
        if self.on_device and self.accumulate > 1:
            raise ValueError(f"on_device: a step takes its whole batch, found accumulate {self.accumulate}")
        if self.on_device and self.noise:
            raise ValueError(f"on_device: noise is drawn on the host, found noise {self.noise:g}")
        if self.on_device and self.attack is not None and (why := unrollable(self.attack)):
            raise ValueError(f"on_device: the attack must take the same steps on every image, found {why}")
        return self

    @model_validator(mode="after")
    def _noise_leaves_the_box(self) -> "TrainRecipe":
        for key in ("attack", "validate_with", "loss") if self.noise else ():
            if keeps_to_the_box(getattr(self, key)):
                raise ValueError(f"noise takes images out of [0, 1]: give {key} box none, found box unit")
        return self

    def _fit_the_task(self) -> None:
        """Check that methods for classification get classes, and those for box `unit` get images in [0, 1]."""
        set_name = self.data.title
        if self.data.task == "regression":
            parts: list[LossNode | PenaltyNode] = [self.loss, *self.penalties]
            needy = [repr(part.label) for part in parts if not part.regression]
            needy += [key for key in ("attack", "validate_with", "adaptive", "certify_eps") if getattr(self, key)]
            if needy:
                raise ValueError(f"data set {set_name!r} is a regression, which has no classes: {', '.join(needy)} cannot be used")
        if self.data.box == "none":
            for key in ("attack", "validate_with", "loss", "penalties"):
                if keeps_to_the_box(getattr(self, key)):
                    raise ValueError(f"data set {set_name!r} does not lie in [0, 1]: give {key} box none, found box unit")

    @classmethod
    def read(cls, source: str | Path, overrides: dict[str, Any] | None = None, on_event: OnEvent | None = None) -> "TrainRecipe":
        """A recipe by name (models/NAME.yaml) or path, with dotted overrides. Raises UserError in one line.

        Fields that were dropped because another method was named are events. Code may be named in the overrides, which the user
        types, and in a recipe of models/; in another file, only code that the overrides name too.
        """
        path = find_recipe(str(source))
        stored = yaml_of(read_text(path), str(path))
        if not isinstance(stored, dict):
            raise UserError(f"{path}: expected a mapping of recipe fields, found {type(stored).__name__}")
        with listening(on_event):
            for line in override_all(stored, overrides or {}, cls):
                emit(Message(text=line))
        typed = f" with {' '.join(f'--{key}' for key in overrides)}" if overrides else ""
        code = TYPED if is_own(path) else typed_code(overrides or {})
        return parse(cls, dict(stored), f"{path}{typed}", code, flags=overrides or ())

    @classmethod
    def parse(cls, stored: Mapping[str, Any], source: str = "recipe", code: Code = CLOSED) -> "TrainRecipe":
        """A recipe from a mapping. Raises UserError in one line.

        `code`: the code that it may name as package.module:Name; `TYPED` (of nodes.code_names) for your own mapping.
        """
        return parse(cls, dict(stored), source, code)

    def yaml(self) -> str:
        """The resolved recipe: every field, default or not."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def typed_code(overrides: Mapping[str, Any]) -> Code:
    """Permission for the code that typed overrides name."""
    return code_in([as_value(text) for text in overrides.values()])


def keeps_to_the_box(part: Any) -> bool:
    """Whether a part of a recipe, or any part of it, keeps perturbed images in [0, 1]."""
    if isinstance(part, tuple):
        return any(keeps_to_the_box(one) for one in part)
    if not isinstance(part, Node):
        return False
    return getattr(part, "box", "none") == "unit" or any(keeps_to_the_box(value) for _, value in part)
