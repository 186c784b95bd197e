"""Rows of one image with coupled layers: searched for, proved, and searched on where the proof falls short by little."""

from typing import NamedTuple

from jaxtyping import Float64
from torch import Tensor

from robustbench_rkhs.certificates.stored import clamped
from robustbench_rkhs.relaxations.ascent import Search
from robustbench_rkhs.relaxations.coupled_ascent import Choice, begun, searched
from robustbench_rkhs.relaxations.couplings import Chain, Curved, bounded, curvatures
from robustbench_rkhs.relaxations.rows import Rows, Tilts
from robustbench_rkhs.runtime.allowance import Allowance
from robustbench_rkhs.runtime.clock import Clock, limited

CLOSE, MORE = 300, 4
"""A search goes on where no row is further below zero than CLOSE times its target, for at most MORE times as many steps."""


class Effort(NamedTuple):
    """What a search may cost."""

    steps: int
    work: float
    """Multiply-adds of both searches together."""
    seconds: float | None
    """Of both searches together, and of the proof between them."""


class Coupled(NamedTuple):
    """What was found, and the bounds that it proves."""

    choice: Choice
    curved: Curved
    value: Float64[Tensor, " batch"]


def coupled_rows(rows: Rows, tilts: Tilts, target: Float64[Tensor, " batch"], effort: Effort, chain: Chain) -> Coupled:
    """From slopes and multipliers without couplings.

    A search only approaches the norms, so it may stop where the proof is still below zero: the second one aims higher by as much.
    """
    allowance, clock = Allowance(effort.work), Clock(effort.seconds)
    with limited(allowance), limited(clock):
        choice, found = searched(rows, begun(tilts, chain), target, Search(effort.steps, 0.1), chain)
    first = _proved(rows, choice, chain)
    short = (first.value <= 0).nonzero().flatten()
    if not len(short) or clock.left() <= 0 or not bool((first.value >= -CLOSE * target).all()):
        return first
    higher = target + (found.double() - first.value).clamp_min(0)
    with limited(allowance), limited(clock):
        more = Search(MORE * effort.steps, 0.05)
        closer = searched(rows.of(short), choice.of(short), higher[short], more, chain)[0]
    second = _proved(rows, choice.replaced(short, closer), chain)
    return second if bool(second.value.amin() > first.value.amin()) else first


def _proved(rows: Rows, choice: Choice, chain: Chain) -> Coupled:
    twice = clamped(choice).double()
    curved = curvatures(twice.couplings, chain)
    return Coupled(choice, curved, bounded(rows, twice.tilts, curved, chain))
