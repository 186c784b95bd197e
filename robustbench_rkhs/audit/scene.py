"""Inputs of the known mistakes, and radii from bounds and logits."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.audit.factors import Part, copied, doubled, pairwise, parts
from robustbench_rkhs.audit.stale import stale_layers
from robustbench_rkhs.bounds import pairs
from robustbench_rkhs.lipschitz import Uncertifiable

Radii = Float64[Tensor, " images"]


class Scene(NamedTuple):
    """The input of the mistakes: the model in layers, the images, and its logits."""

    model: nn.Module
    """A float64 copy on the CPU, in eval mode."""
    chain: list[Part]
    refused: str
    """Why the whole model is not proved; empty if it is."""
    x: Float64[Tensor, "images *image"]
    y: Int[Tensor, " images"]
    logits: Float64[Tensor, "images classes"]
    given: Float64[Tensor, "images classes"]
    """Logits of the given model, in its own arithmetic."""
    bounds: Float64[Tensor, "classes classes"]
    """Bounds of f_y - f_j: proved, or else the product of the proved factors, with layers without a rule counted as 1."""
    norm: str
    stale: list[str]

    @property
    def classes(self) -> int:
        return self.logits.shape[1]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, x: Tensor, y: Tensor, norm: str = "l2") -> "Scene":
        """The model is only read."""
        shape, stale = tuple(x.shape[1:]), stale_layers(model, x[:2])
        twin, images = doubled(model), x.detach().to("cpu", torch.float64)
        given = _asked(copied(model).eval(), x)
        logits = _asked(twin, images)
        chain, refused = parts(model, shape)
        try:
            bounds = pairs(twin, shape, logits.shape[1])
        except Uncertifiable as words:
            refused = refused or str(words)
            bounds = pairwise(chain, logits.shape[1])
        return cls(twin, chain, refused, images, y.detach().cpu(), logits, given.double().cpu(), bounds, norm, stale)


def _asked(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(256)])


def radii(
    logits: Float64[Tensor, "images classes"],
    y: Int[Tensor, " images"],
    bounds: Float64[Tensor, "classes classes"],
    shape: tuple[int, ...],
    norm: str = "l2",
    ties: bool = False,
) -> Radii:
    """min_j (f_y - f_j) / L_yj, over sqrt(d) in linf; -1 where the label's logit is not the unique largest.

    `ties`: logits that equal the label's do not count as rivals.
    """
    gaps = logits.gather(1, y[:, None]) - logits
    rival = torch.ones_like(gaps, dtype=torch.bool).scatter(1, y[:, None], False)
    if ties:
        rival &= gaps != 0
    quotient = torch.where(bounds[y] > 0, gaps / bounds[y].clamp_min(1e-300), torch.inf)
    quotient = torch.where(gaps > 0, quotient, -torch.inf).masked_fill(~rival, torch.inf)
    smallest = quotient.amin(1) / (math.sqrt(math.prod(shape)) if norm == "linf" else 1.0)
    return torch.where(smallest > 0, smallest, -1.0)
