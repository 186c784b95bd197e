"""Parts on which no kink of a chain is uncertain: the network is affine there, and the dual of its least value gives the slopes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from robustbench_rkhs.relaxations.couplings import closest, sides
from robustbench_rkhs.relaxations.interval import Step
from robustbench_rkhs.relaxations.lagrangian import Tilt, lagrangian
from robustbench_rkhs.relaxations.linear_bounds import chain_back
from robustbench_rkhs.relaxations.links import Link
from robustbench_rkhs.relaxations.planes import Bent
from robustbench_rkhs.relaxations.rows import Rows, Tilts, bending, kinks_of
from robustbench_rkhs.runtime.clock import ask

STEPS = 100
"""Quasi-Newton steps for each part; few are needed."""
LITTLE = 1e-9
"""Multipliers of the balls of layers, which do not matter here, relative to the slopes over the radius."""

Way = tuple[tuple[int, int, int], ...]
"""Splits from the whole to a part: the kink's layer, the value in it, and the side: 0 at most zero, 1 at least zero."""


class Affine(NamedTuple):
    """A row, and what its splits say, as functions of the difference d to the image."""

    slope: Float64[Tensor, " pixels"]
    constant: float
    normals: Float64[Tensor, "splits pixels"]
    """The part is where normals d + heights >= 0."""
    heights: Float64[Tensor, " splits"]


@torch.no_grad()
def fixed_tilts(rows: Rows, ways: Sequence[Way], chain: Sequence[Link], target: float) -> Tilts:
    r"""Slopes with which `valued` bounds each row on its part, where each kink lies on one side of zero.

    There the row is c + a' d, and the part is where G d + h >= 0, within the ball (and the box). By duality its least value is

    .. math:: \max_{\lambda \ge 0} \; c - \lambda^\top h + \min_d (a - G^\top \lambda)^\top d

    which grows without bound where the part is empty: the search ends above `target`. A multiplier of a split is a slope of its
    kink: c f(z) >= (c - lambda) z where z >= 0. So any lambda is sound, and what is proved is the bound of `lagrangian`.
    Cost: a matrix product of each pair of layers for each row, and for each of at most STEPS steps a product with G.
    """
    pushes: list[dict[str, Tensor]] = []
    for number, way in enumerate(ways):
        ask()
        row = rows.of(torch.tensor([number]))
        on = {step.path: (step.before.lower >= 0).flatten() for step in kinks_of(row.steps)}
        pushes.append(_pushed(_dual(row, _affine(row, way, chain, on), target), way, on))
    joined = {path: torch.stack([one[path] for one in pushes]) for path in pushes[0]}
    return _sloped(rows, joined)


def _affine(row: Rows, way: Way, chain: Sequence[Link], on: dict[str, Bool[Tensor, " n"]]) -> Affine:
    image = row.steps[0].before.center.flatten()
    linear, constant = torch.eye(len(image), dtype=image.dtype), torch.zeros_like(image)
    before = []
    for link in chain:
        center = row.balls[link.path].center.flatten()
        linear, constant = link.matrix @ linear, center + link.matrix @ constant
        before.append((linear, constant))
        kept = torch.where(on[link.path], 1.0, link.left).to(image)
        bent = torch.where(center > 0, center, link.left * center)
        linear, constant = kept[:, None] * linear, kept * constant - bent  # relative to the kink's outputs at the image
    last = max(at for at, step in enumerate(row.steps) if step.path == chain[-1].path)
    lines = chain_back(row.steps[last + 1 :], row.lines._replace(errors=None))
    c, offset = lines.slopes.flatten(), float(lines.offsets[0, 0] + lines.slopes.flatten() @ bent)
    normals = torch.stack([(2 * side - 1) * before[layer][0][unit] for layer, unit, side in way])
    heights = torch.stack([(2 * side - 1) * before[layer][1][unit] for layer, unit, side in way])
    return Affine(c @ linear, offset + float(c @ constant), normals, heights)


def _dual(row: Rows, affine: Affine, target: float) -> np.ndarray:
    """Multipliers of the splits."""
    region = row.steps[0].before
    low, high = sides(region)
    eps, normals, heights = region.radius.flatten(1)[:, 0], affine.normals, affine.heights

    def value(given: np.ndarray) -> tuple[float, np.ndarray]:
        multipliers = torch.from_numpy(given)
        slope = (affine.slope - multipliers @ normals)[None]
        d = closest(slope, low, high, eps)[0]
        found = affine.constant - float(multipliers @ heights) + float(slope[0] @ d)
        return -found, (normals @ d + heights).numpy()

    def watch(intermediate_result: OptimizeResult) -> None:
        ask()
        if -intermediate_result.fun > 2 * target:
            raise StopIteration

    begun = np.zeros(len(heights))
    if -value(begun)[0] > 2 * target:
        return begun
    found: np.ndarray = minimize(
        value, begun, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(begun), callback=watch, options={"maxiter": STEPS}
    ).x
    return found


def _pushed(multipliers: np.ndarray, way: Way, on: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the splits take off the slope of each value."""
    paths, found = list(on), {path: torch.zeros(len(one), dtype=torch.float64) for path, one in on.items()}
    for (layer, unit, side), multiplier in zip(way, multipliers.tolist(), strict=True):
        found[paths[layer]][unit] += (2 * side - 1) * multiplier
    return found


def _sloped(rows: Rows, pushes: dict[str, Float64[Tensor, "batch n"]]) -> Tilts:
    """The slopes relative to those of the kink, from the last kink back."""
    found: Tilts = {}

    def bend(step: Step) -> Callable[[Tensor, float], Bent]:
        def bound(c: Tensor, left: float) -> Bent:
            low, high, ball = step.before.lower, step.before.upper, rows.balls[step.path]
            push = pushes[step.path].view_as(low)[:, None]
            slope = (low >= 0).to(c)[:, None] - torch.where(c != 0, push / (c * (1 - left)), 0.0)
            multiplier = LITTLE * c.flatten(2).norm(dim=2) / ball.radius[:, None].clamp_min(LITTLE)
            found[step.path] = Tilt(slope.float(), multiplier.float())
            return lagrangian(c, left, low, high, ball, Tilt(slope.float().to(c), multiplier.to(c)), False)

        return bound

    chain_back(bending(rows.steps, bend), rows.lines._replace(errors=None))
    return found
