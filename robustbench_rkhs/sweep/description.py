"""The description of a sweep: one file, checked completely before anything is trained."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from robustbench_rkhs.nodes.documents import read_text, yaml_of
from robustbench_rkhs.nodes.node import Node, Real, Seed, UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.paths import find_sweep
from robustbench_rkhs.nodes.threat_model import Norm

RESERVED = {
    "seed": "give `seeds` instead",
    "validate_with": "the sweep sets it: give `eps`, `norm` and `steps`",
    "validate_every": "trials would be compared at different epochs",
    "start_from": "give it once, in `settings`",
    **dict.fromkeys(("data.name", "data.seed", "data.validation", "data.path"), "trials would be compared on different images"),
}
"""Fields that may not be varied, and why."""
Setting = dict[str, Any]
"""Dotted field -> value."""


class Range(Node):
    """A range of numbers, both ends included."""

    low: Real
    """Smallest value."""
    high: Real
    """Largest value."""
    log: bool = False
    """Uniform in the logarithm."""
    int: bool = False
    """Whole numbers only."""

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0, found {self.low:g}")
        if self.int and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"int needs whole ends, found {self.low:g} and {self.high:g}")
        return self

    def ends(self) -> list[Any]:
        """Both ends, as values for a recipe."""
        return [int(end) if self.int else float(end) for end in (self.low, self.high)]


class Prune(Node):
    """Stop a trial whose best validation value so far is below the median of the others' at the same epoch."""

    startup: int = Field(4, ge=1)
    """Trials that must be finished before any is stopped."""
    warmup: int = Field(0, ge=0)
    """Epochs of a trial in which it is not stopped."""


class Sweep(Node):
    """Train a recipe at many settings and pick one on validation images; the test images play no part."""

    about: str = ""
    """One sentence on the purpose of the sweep."""
    recipe: str
    """Named model or path of a recipe: the base of all trials."""
    settings: dict[str, Any] = {}
    """Dotted recipe fields set for all trials, such as `epochs`."""
    vary: dict[str, list[Any] | Range]
    """Dotted recipe field -> its values, or {low, high, log, int} where the sampler is random or tpe."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """`grid`: every combination once; `random`: independent draws; `tpe`: draws guided by earlier scores."""
    trials: int | None = Field(None, ge=1)
    """Number of settings tried by random or tpe; a grid tries all its points."""
    startup: int = Field(10, ge=1)
    """Random trials before tpe starts."""
    seed: Seed = 0
    """Seed of random and tpe."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Each setting is trained once for each of these recipe seeds; its score is their mean."""
    pick: Literal["validation_robust", "validation_certified", "validation_clean"] = "validation_robust"
    """The score that picks a setting: accuracy under PGD at eps, certified by the margin certificate at eps, or clean."""
    eps: Real = Field(gt=0)
    """Radius of robust and certified accuracy, in pixels of [0, 1]."""
    norm: Norm = "l2"
    """Norm of the radius."""
    steps: int = Field(10, ge=1)
    """Steps of the PGD attack on validation images."""
    prune: Prune | None = None
    """Stop poor trials early; default: all run to their end."""

    @model_validator(mode="before")
    @classmethod
    def _ranges(cls, given: Any) -> Any:
        """A mapping below `vary` is a range; its own errors name the field."""
        for field, values in (given.get("vary") or {}).items() if isinstance(given, dict) else ():
            if not isinstance(values, (list, dict, Range)):
                raise ValueError(f"vary.{field}: expected a list of values or {{low, high, log, int}}, found {values!r}")
            if isinstance(values, dict):
                parse(Range, values, f"vary.{field}")
        return given

    @model_validator(mode="after")
    def _parts_agree(self) -> "Sweep":
        if not self.vary:
            raise ValueError("vary: expected at least one recipe field, found none")
        for field, values in self.vary.items():
            if isinstance(values, list) and (not values or len({json.dumps(one) for one in values}) < len(values)):
                raise ValueError(f"vary.{field}: expected different values, found {values}")
            if isinstance(values, Range) and self.sampler == "grid":
                raise ValueError(f"vary.{field}: a grid needs a list of values; a range is for sampler random or tpe")
            for reserved, why in RESERVED.items():
                if field == reserved or field.startswith(f"{reserved}.") or reserved.startswith(f"{field}."):
                    raise ValueError(f"vary.{field}: cannot be varied: {why}")
        if self.sampler == "grid" and self.trials not in (None, self.points):
            raise ValueError(f"trials: the grid has {self.points} points, found {self.trials}; leave trials out")
        if self.sampler != "grid" and self.trials is None:
            raise ValueError(f"trials: sampler {self.sampler} needs a number of trials")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different seeds, found {list(self.seeds)}")
        if self.prune and self.pick == "validation_certified":
            raise ValueError(
                "prune: certified accuracy is not measured during training; leave prune out, or pick validation_robust"
            )
        return self

    @property
    def points(self) -> int:
        """Points of the grid."""
        return math.prod(len(values) for values in self.vary.values() if isinstance(values, list))

    @classmethod
    def read(cls, source: str) -> "Sweep":
        """A sweep by name (models/sweeps/NAME.yaml) or path. Raises UserError in one line."""
        path = find_sweep(source)
        stored = yaml_of(read_text(path), str(path))
        if not isinstance(stored, dict):
            raise UserError(f"{path}: expected a mapping of sweep fields, found {type(stored).__name__}")
        sweep: Sweep = parse(cls, stored, str(path))
        return sweep
