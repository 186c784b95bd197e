"""What proofs over balls take off each margin, so that they hold for the float32 network as this CPU computes it."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.certificates.float32 import evaluated_error
from robustbench_rkhs.certificates.pairwise import chain_of
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.threat_model import Norm

WORTH = 0.01
"""Share of an image's margin that rounding may take; a larger bound of it says more about the bound than about float32, ..."""
ERRS = 1e-5
"""... unless the network was seen to err by more than this share of the margin at the image itself."""
NEVER = 1e30
"""Taken off where float32 may overflow: nothing is proved there."""


class Said(NamedTuple):
    """What a network says in float64 to images, and what would be right."""

    logits: Float64[Tensor, "batch classes"]
    label: Int[Tensor, " batch"]

    def margins(self) -> Float64[Tensor, " batch"]:
        """The smallest difference of the label's logit and another."""
        own = self.label[:, None]
        return (self.logits.gather(1, own) - self.logits).scatter(1, own, torch.inf).amin(1)


class Errors(NamedTuple):
    """Bounds of the difference between the float32 logits and the real ones: e + s r at l2 distance r, for each image."""

    fixed: Float64[Tensor, " batch"]
    slope: float
    furthest: Float64[Tensor, " batch"]
    """Radius within which no sum overflows."""
    kept: Bool[Tensor, " batch"]
    """Images whose claim is about the float32 network; that of the others is about the network in real arithmetic."""
    wide: float
    """l2 radius of a ball of radius 1."""

    def slack(self, part: Int[Tensor, " some"], radii: Float64[Tensor, " some"]) -> Float64[Tensor, " some"]:
        r"""What is taken off every difference of two logits of these images, over balls of these radii: 2 (e + s r)."""
        reach = radii * self.wide
        found = 2 * (self.fixed[part] + self.slope * reach) * (1 + 1e-9)
        found = torch.where(reach <= self.furthest[part], found, NEVER).nan_to_num(nan=NEVER, posinf=NEVER)
        return torch.where(self.kept[part], found, 0.0)


def errors_of(model: nn.Module, x: Float64[Tensor, "batch *image"], said: Said, norm: Norm, eps: float) -> Errors | None:
    """The errors around these images; None where the rounding of this model is not bounded.

    `eps`: the largest radius asked for, at which an image's rounding is compared with its margin. Cost: a float64 pass of all
    images, and a pass of each alone.
    """
    logits, gaps = said.logits, said.margins()
    shape = tuple(x.shape[1:])
    try:
        fixed, slope, furthest = evaluated_error(model, chain_of(model, shape), x)
    except Uncertifiable:
        return None
    wide = 1.0 if norm == "l2" else math.sqrt(math.prod(shape)) * (1 + 1e-12)
    errors = Errors(fixed.to(x.device), slope, furthest.to(x.device), gaps > 0, wide)
    everywhere = torch.arange(len(gaps), device=x.device)
    close = errors.slack(everywhere, torch.full_like(gaps, eps)) <= WORTH * gaps
    found = torch.cat([model(one.float()) for one in x.split(1)] or [x.new_zeros(0, 1)]).double()  # alone: no company plays a part
    seen = (found - logits).abs().amax(1) > ERRS * gaps
    return errors._replace(kept=(gaps > 0) & (close | seen))
