"""DDN: direction and norm decoupled."""

from typing import Literal
import torch
from torch import Tensor
from torch.nn import functional
from robustbench_rkhs.attacks.ball import per_image, unit
from robustbench_rkhs.attacks.engine import Engine, Value
from robustbench_rkhs.attacks.radius import RadiusAttack

class DDN(RadiusAttack):
    name: Literal["ddn"] = "ddn"
    loss: Literal["margin", "cross_entropy"] = "margin"
    def value(self, engine: Engine, at: Tensor) -> Value:
        if self.loss == "margin":
            return super().value(engine, at)
        y, gain = engine.y[at], engine.gain[at]
        return lambda logits, rows: -functional.cross_entropy(logits * gain[rows, None], y[rows], reduction="none")

    def placed(self, delta, radius):
        return unit(delta) * per_image(radius, delta)
