"""Rows of linear bounds as they are written into certificate files."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from robustbench_rkhs.relaxations.branching import Leaf
from robustbench_rkhs.relaxations.coupled_ascent import Choice
from robustbench_rkhs.relaxations.couplings import Curved
from robustbench_rkhs.relaxations.rows import Tilts

LEAST = 1e-20
"""Smallest multiplier or curvature that is written."""


class Stored(NamedTuple):
    """Rows of some images: float32 but for the norms."""

    rows: Int[Tensor, "rows 2"]
    """Image and other class of each row."""
    slopes: list[Tensor]
    """(parts, values) for each kink of the network, in order."""
    multipliers: Tensor
    """(parts, kinks)"""
    pushes: list[Tensor]
    """(rows, values) for each kink; none where there are no couplings."""
    scales: list[Tensor]
    """The same for each kink but the last."""
    norms: Tensor
    """(rows, kinks), float64: of each link (`couplings.curvatures`)."""
    part_of: Int[Tensor, " parts"]
    """The row of each part; a row that is not proved in parts is its own."""
    splits: Int[Tensor, "splits 4"]
    """Part, kink, value and side (0: at most zero), from the root on."""

    @property
    def bytes(self) -> int:
        """Size in a file."""
        parts = [*self.slopes, self.multipliers, *self.pushes, *self.scales, self.norms, self.splits]
        return sum(part.numel() * part.element_size() for part in parts)


def plain(named: Int[Tensor, "rows 2"], paths: Sequence[str], leaves: Sequence[Leaf], part_of: Sequence[int]) -> Stored:
    """Rows without couplings. `paths`: of the kinks, in order; `leaves`: their parts."""
    tilts = [leaf.tilts for leaf in leaves]
    splits = [(part, *split) for part, leaf in enumerate(leaves) for split in leaf.way]
    return Stored(
        named,
        [torch.cat([one[path].slope.float().flatten(1) for one in tilts]) for path in paths],
        torch.cat([torch.cat([one[path].multiplier.float() for path in paths], 1) for one in tilts]),
        [],
        [],
        torch.zeros(len(named), 0, dtype=torch.float64),
        torch.tensor(part_of),
        torch.tensor(splits, dtype=torch.int64).reshape(-1, 4),
    )


def coupled(rows: Stored, choice: Choice, curved: Curved, paths: Sequence[str]) -> Stored:
    """The same with couplings, and their norms from what they prove."""
    couplings = [choice.couplings[path] for path in paths]
    scales = [one.scale for one in couplings[:-1]]
    ends = zip(paths[:-1], scales, strict=True)
    squares = [curved.least, *(curved.bowls[path][0][:, 0] / scale[:, 0].double().square() for path, scale in ends)]
    return rows._replace(pushes=[one.push for one in couplings], scales=scales, norms=torch.stack(squares, 1).sqrt())


def clamped(choice: Choice) -> Choice:
    """With nothing below LEAST, in place."""
    for tilt in choice.tilts.values():
        tilt.multiplier.clamp_min_(LEAST)
    for coupling in choice.couplings.values():
        coupling.push.clamp_min_(LEAST)
        coupling.scale.clamp_min_(LEAST)
    return choice


def positive(tilts: Tilts) -> bool:
    """Whether there is a ball at every kink."""
    return all(bool((one.multiplier > 0).all()) for one in tilts.values())


def joined(several: Sequence[Stored]) -> Stored:
    """Rows of several images."""
    if not several:
        nothing = torch.zeros(0, dtype=torch.int64)
        return Stored(nothing.view(0, 2), [], torch.zeros(0, 0), [], [], torch.zeros(0, 0), nothing, nothing.view(0, 4))
    slopes, pushes, scales = (
        [torch.cat(one) for one in zip(*part, strict=True)]
        for part in ([one.slopes for one in several], [one.pushes for one in several], [one.scales for one in several])
    )
    rows, parts, part_of, splits = 0, 0, [], []
    for one in several:
        part_of.append(one.part_of + rows)
        splits.append(one.splits + torch.tensor([parts, 0, 0, 0]))
        rows, parts = rows + len(one.rows), parts + len(one.part_of)
    return Stored(
        torch.cat([one.rows for one in several]),
        slopes,
        torch.cat([one.multipliers for one in several]),
        pushes,
        scales,
        torch.cat([one.norms for one in several]),
        torch.cat(part_of),
        torch.cat(splits),
    )
