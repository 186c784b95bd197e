"""A model and its images by what a user typed: a value that another process, or another machine, loads them from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from robustbench_rkhs.evaluation.loaders import Loaded
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.zoo.named import load_model, normalised, smoothed
from robustbench_rkhs.zoo.opened import enter


@dataclass(frozen=True)
class Typed:
    """What was typed: `--model`, `--weights`, `--data`, `--allow-code`, the votes of `--smooth`, `--mean` and `--std`."""

    model: str
    weights: str | None = None
    data: str | None = None
    allow_code: tuple[str, ...] = ()
    smooth: Mapping[str, float] | None = None
    """sigma, n ...: of a smoothed classifier."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    data_name: str | None = None
    """The name of the images, where it is not that of their file."""

    def load(self) -> Loaded:
        """The model and all its test images, as an evaluation takes them. Raises UserError."""
        named = normalised(load_model(self.model, self.weights, self.data, allow_code=self.allow_code), self.mean, self.std)
        if self.smooth is not None:
            votes = dict(self.smooth)
            named = smoothed(named, float(votes.pop("sigma")), **{name: int(value) for name, value in votes.items()})
        opened = enter(named, None)
        split = opened.split if self.data_name is None else replace(opened.split, data=self.data_name)
        return Loaded(opened.model, split)

    def plain(self) -> dict[str, Any]:
        """As JSON takes it; `Typed.read` gives it back."""
        return asdict(self)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Typed":
        """From `plain()`. Raises UserError in one line."""
        try:
            return cls(**{**stored, **{name: tuple(stored.get(name, ())) for name in ("allow_code", "mean", "std")}})
        except TypeError as error:
            raise UserError(f"loader: {error}") from None
