"""The recipes of all runs of a sweep, checked before anything is trained."""

import itertools
import json
from functools import cached_property
from typing import Any

import yaml

from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.nodes.code_names import code_in
from robustbench_rkhs.nodes.differences import told
from robustbench_rkhs.nodes.documents import read_text, yaml_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.overrides import as_value, override_all
from robustbench_rkhs.nodes.paths import find_recipe, is_own
from robustbench_rkhs.sweep.description import RESERVED, Range, Setting, Sweep
from robustbench_rkhs.training.recipe import TrainRecipe


class Plan:
    """A sweep and its base recipe, with every setting's recipe. Raises UserError for fields and values a recipe refuses."""

    def __init__(self, sweep: Sweep, overrides: dict[str, str] | None = None) -> None:
        self.sweep = sweep
        path = find_recipe(sweep.recipe)
        self.base: dict[str, Any] = yaml_of(read_text(path), str(path))
        if not isinstance(self.base, dict):
            raise UserError(f"{path}: expected a mapping of recipe fields, found {type(self.base).__name__}")
        self.code = code_in([self.base if is_own(path) else None, *map(as_value, (overrides or {}).values())])
        """The code that the recipes may name: that of a recipe in models/, and what was typed."""
        settings = {key: yaml.safe_dump(value) for key, value in sweep.settings.items()}
        self.notes = override_all(self.base, settings, TrainRecipe) + override_all(self.base, overrides or {}, TrainRecipe)
        """One line per name in the settings that dropped fields of the recipe."""
        for key in {"seed", "validate_with"} & {*sweep.settings, *(overrides or {})}:
            raise UserError(f"{key}: {RESERVED[key]}")
        plain = TrainRecipe.parse(json.loads(json.dumps(self.base)), sweep.recipe, self.code)
        if plain.data.task == "regression":
            raise UserError(f"data set {plain.data.title!r} is a regression: a sweep measures accuracies, which need classes")
        if not plain.data.validation:
            raise UserError("a sweep picks on validation images, found data.validation 0: set data.validation in `settings`")
        box = plain.data.box
        self.attack = PGD(norm=sweep.norm, eps=sweep.eps, steps=sweep.steps, targets=0, box=box)

    @cached_property
    def grid(self) -> list[Setting]:
        """The grid's points in their order: the last field changes fastest."""
        lists = [values for values in self.sweep.vary.values() if isinstance(values, list)]
        return [dict(zip(self.sweep.vary, point, strict=True)) for point in itertools.product(*lists)]

    @property
    def trials(self) -> int:
        """Number of settings that are tried."""
        return len(self.grid) if self.sweep.sampler == "grid" else self.sweep.trials or 0

    def recipe(self, setting: Setting, seed: int) -> TrainRecipe:
        """The full recipe of one run. If robust accuracy picks the setting, it also picks the epoch."""
        stored = json.loads(json.dumps(self.base))
        try:
            override_all(stored, {key: yaml.safe_dump(value) for key, value in setting.items()}, TrainRecipe)
        except UserError as error:
            raise UserError(f"vary.{str(error).removeprefix('--')}") from None
        stored["seed"] = seed
        if self.sweep.pick == "validation_robust":
            stored["validate_with"] = self.attack.model_dump(mode="json")
        return TrainRecipe.parse(stored, ", ".join(f"{key} {told(value)}" for key, value in setting.items()), self.code)

    def recipes(self) -> list[TrainRecipe]:
        """All recipes of a grid; for random or tpe, each value and range end, with the other fields at their first value."""
        if self.sweep.sampler == "grid":
            settings = self.grid
        else:
            values = {key: one.ends() if isinstance(one, Range) else one for key, one in self.sweep.vary.items()}
            first = {key: some[0] for key, some in values.items()}
            settings = [first | {key: value} for key, some in values.items() for value in some]
        return [self.recipe(setting, self.sweep.seeds[0]) for setting in settings]

    def record(self) -> dict[str, Any]:
        """The settings that must not change when a sweep continues."""
        stored = {"sweep": self.sweep.model_dump(mode="json", exclude={"about"}), "recipe": self.base}
        result: dict[str, Any] = json.loads(json.dumps(stored))
        return result
