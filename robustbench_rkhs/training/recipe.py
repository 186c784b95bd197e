"""TrainRecipe: everything that decides how a model is trained. YAML in, resolved YAML out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

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
from robustbench_rkhs.training.adaptive import Adaptive
from robustbench_rkhs.training.losses import CrossEntropy, Loss, LossNode
from robustbench_rkhs.training.optimizers import SGD, Constant, Optimizer, Schedule
from robustbench_rkhs.training.penalties import Penalty, PenaltyNode
from robustbench_rkhs.training.projections import SpectralProjection


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
    """Images per step."""
    seed: Seed = 0
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
            raise ValueError(f"loss {self.loss.label!r} perturbs the images itself: leave `attack` out")
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
        """What needs classes gets classes, and what stays in [0, 1] gets images that lie there."""
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
    def read(
        cls, source: str | Path, overrides: dict[str, Any] | None = None, say: Callable[[str], None] = lambda line: None
    ) -> "TrainRecipe":
        """A recipe by name (models/NAME.yaml) or path, with dotted overrides. Raises UserError in one line.

        `say` hears of fields that fell away because another method was named. Code may be named in the overrides, which are typed,
        and by a recipe of models/; of another file only what the overrides name, too.
        """
        path = find_recipe(str(source))
        stored = yaml_of(read_text(path), str(path))
        if not isinstance(stored, dict):
            raise UserError(f"{path}: expected a mapping of recipe fields, found {type(stored).__name__}")
        for line in override_all(stored, overrides or {}, cls):
            say(line)
        return cls.parse(stored, str(path), TYPED if is_own(path) else typed_code(overrides or {}))

    @classmethod
    def parse(cls, stored: Mapping[str, Any], source: str = "recipe", code: Code = CLOSED) -> "TrainRecipe":
        """A recipe from a mapping. Raises UserError in one line.

        `code`: whose code it may name as package.module:Name; `TYPED` (of nodes.code_names) for a mapping of your own.
        """
        return parse(cls, dict(stored), source, code)

    def yaml(self) -> str:
        """The resolved recipe: every field, default or not."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def typed_code(overrides: Mapping[str, Any]) -> Code:
    """Leave for the code that typed overrides name."""
    return code_in([as_value(text) for text in overrides.values()])


def keeps_to_the_box(part: Any) -> bool:
    """Whether a part of a recipe, or a part of that part, keeps what it perturbs in [0, 1]."""
    if isinstance(part, tuple):
        return any(keeps_to_the_box(one) for one in part)
    if not isinstance(part, Node):
        return False
    return getattr(part, "box", "none") == "unit" or any(keeps_to_the_box(value) for _, value in part)
