"""The affine maps between the kinks of a chain, as matrices."""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.relaxations.full_crown import KINKS
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.linear_bounds import DIAGONAL, Lines, chain_back
from robustbench_rkhs.relaxations.rows import indexed

MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d)
PLAIN = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d)
LARGEST = 2**24
"""Most numbers of a matrix: 128 MiB in float64."""
ROWS = 512
"""Rows that are computed at once."""


class Link(NamedTuple):
    """What lies between a kink and the one before it, or the image."""

    path: str
    """Of the kink at its end."""
    left: float
    """The kink's slope left of zero."""
    matrix: Float64[Tensor, "outputs inputs"]
    """Each entry is right up to a relative 2^-48: one layer that mixes values, and factors for each value."""


def links(steps: list[Step]) -> list[Link]:
    """The links of a network from the image on; none where it is no such chain or where a matrix would be too large."""
    found: list[Link] = []
    run: list[Step] = []
    for step in steps:
        if isinstance(step.module, KINKS):
            if not _simple(run) or run[0].before.center[0].numel() * step.before.center[0].numel() > LARGEST:
                return []
            found.append(Link(step.path, _left(step.module), _matrix(run, step)))
            run = []
        else:
            run.append(step)
    return found if all(isinstance(step.module, (*MIXING, *PLAIN, *DIAGONAL)) for step in run) else []


def _left(module: nn.Module) -> float:
    return module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0


def _simple(run: list[Step]) -> bool:
    mixing = [step.module for step in run if isinstance(step.module, MIXING)]
    known = all(isinstance(step.module, (*MIXING, *PLAIN, *DIAGONAL)) for step in run)
    return known and len(run) <= 8 and len(mixing) == 1 and getattr(mixing[0], "padding_mode", "zeros") == "zeros"


def _matrix(run: list[Step], after: Step) -> Tensor:
    """Backwards from each output, in blocks."""
    single = indexed(run, torch.tensor([0], device=after.before.center.device))
    shape, size = after.before.center.shape[1:], after.before.center[0].numel()
    eye = torch.eye(size, dtype=torch.float64, device=after.before.center.device)
    parts = []
    for some in eye.split(ROWS):
        rows = some.view(1, len(some), *shape)
        parts.append(chain_back(single, Lines(rows, rows.new_zeros(1, len(some)))).slopes[0].flatten(1))
    return torch.cat(parts)
