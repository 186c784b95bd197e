"""FMN"""

from typing import Literal
import torch
from torch import Tensor
from robustbench_rkhs.attacks.ball import per_image, unit
from robustbench_rkhs.attacks.radius import RadiusAttack

class FMN(RadiusAttack):
    name: Literal["fmn"] = "fmn"

    def placed(self, delta, radius):
        bound = per_image(radius, delta)
        if self.norm == "linf":
            return torch.maximum(torch.minimum(delta, bound), -bound)
        length = per_image(delta.flatten(1).norm(dim=1), delta)
        return delta * (bound / torch.maximum(length, bound)).nan_to_num(nan=1.0)
