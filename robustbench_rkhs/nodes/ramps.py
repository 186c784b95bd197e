"""Ramps: schedules for the numeric fields of penalties and losses over the training."""

import math
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from robustbench_rkhs.nodes.node import Node, Real, did_you_mean

Which = TypeVar("Which", bound="Scheduled")


class Ramp(Node):
    r"""From `start` to the field's own value, over a part of the training.

    .. math:: v(p) = v_0 + s\Big(\frac{p - p_0}{p_1 - p_0}\Big) (v_1 - v_0), \qquad s(t) = t, \;
              \tfrac12 (1 - \cos \pi t) \text{ or } [t \ge 1]

    p is the completed share of the training; s is clamped to [0, 1].
    """

    start: Real = 0.0
    """Value v_0 up to `begin`."""
    begin: Real = Field(0.0, ge=0, le=1)
    """Share of the training p_0 from which it changes."""
    end: Real = Field(1.0, ge=0, le=1)
    """Share of the training p_1 from which the field's own value v_1 is in force."""
    shape: Literal["linear", "cosine", "jump"] = "linear"
    """Interpolation between the two values."""

    @model_validator(mode="after")
    def _forwards(self) -> "Ramp":
        if self.end < self.begin:
            raise ValueError(f"a ramp ends after it begins: found begin {self.begin} and end {self.end}")
        return self

    def __call__(self, value: float, progress: float) -> float:
        """The number in force at `progress` in [0, 1], where `value` is the field's own."""
        if progress >= self.end:
            return value
        share = (progress - self.begin) / (self.end - self.begin) if progress > self.begin else 0.0
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        elif self.shape == "jump":
            share = 0.0
        return self.start + share * (value - self.start)


class Scheduled(Node):
    """A node whose numbers may follow ramps: `schedule: {weight: {end: 0.3}, eps: {start: 0, begin: 0.1, end: 0.5}}`."""

    schedule: dict[str, Ramp] = {}
    """A ramp for any numeric field, by its name."""

    @model_validator(mode="after")
    def _known_numbers(self) -> "Scheduled":
        numbers = [name for name in type(self).model_fields if isinstance(getattr(self, name), float)]
        for name in self.schedule:
            if name not in numbers:
                raise ValueError(f"no number {name!r} to schedule; {did_you_mean(name, numbers)}")
        return self

    def at(self: Which, progress: float) -> Which:
        """The same node with the numbers in force at `progress`, the completed share of the training."""
        if not self.schedule:
            return self
        return self.model_copy(update={name: ramp(getattr(self, name), progress) for name, ramp in self.schedule.items()})
