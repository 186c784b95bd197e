"""Curves: activations whose slope rises or falls between known turning points, between two lines on any interval."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.relaxations.interval import NoRule
from robustbench_rkhs.relaxations.planes import Planes
from robustbench_rkhs.relaxations.region import Region, between

HALVINGS = 30
"""Halvings of the bracket of each point of tangency; any number gives sound lines."""
STEEP = 2.0
"""Above the steepest slope of each curve."""
S_SHAPED = (False, True, False)
SLACK = 1e-12
"""Added to each line: an error d of a turning point moves a line by less than d^3, and is below 1e-6."""


class Curve(NamedTuple):
    """An activation, its slope, and the points between which the slope is monotone (it may jump there)."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    turns: tuple[float, ...]
    rises: tuple[bool, ...]
    """Whether the slope rises (or stays) or falls, before, between and after these points."""
    error: float = 0.0
    """How far the layer's own function differs from `value`."""


def _normal(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def _gelu_slope(z: Tensor) -> Tensor:
    slope: Tensor = torch.special.ndtr(z) + z * _normal(z)
    return slope


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    c, a = math.sqrt(2 / math.pi), 0.044715
    bend = (c * (z + a * z**3)).tanh()
    return (1 + bend) / 2 + z * (1 - bend.square()) * c * (1 + 3 * a * z.square()) / 2


def _silu_slope(z: Tensor) -> Tensor:
    return z.sigmoid() * (1 + z * (-z).sigmoid())


def _mish_slope(z: Tensor) -> Tensor:
    bend = functional.softplus(z).tanh()
    return bend + z * z.sigmoid() * (1 - bend.square())


def _hardswish_slope(z: Tensor) -> Tensor:
    return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, (2 * z + 3) / 6))


def _selu_slope(z: Tensor, scale: float = 1.0507009873554805, alpha: float = 1.6732632423543772) -> Tensor:
    return scale * torch.where(z > 0, 1.0, alpha * z.clamp_max(0).exp())


def _softplus(module: nn.Softplus) -> Curve:
    """The layer jumps to the identity at its threshold, by log(1 + e^-threshold) / beta."""
    beta = module.beta
    if not (math.isfinite(beta) and beta > 0):
        raise NoRule(f"expected a positive beta, found {beta}")
    jump = math.log1p(math.exp(-module.threshold)) / beta
    return Curve(lambda z: torch.logaddexp(beta * z, torch.zeros_like(z)) / beta, lambda z: (beta * z).sigmoid(), (), (True,), jump)


CURVES: dict[type[Any], Callable[..., Curve]] = {
    nn.GELU: lambda module: (
        Curve(partial(functional.gelu, approximate="tanh"), _gelu_tanh_slope, (-1.4185040087908283, 1.4185040087908283), S_SHAPED)
        if module.approximate == "tanh"
        else Curve(functional.gelu, _gelu_slope, (-math.sqrt(2), math.sqrt(2)), S_SHAPED)
    ),
    nn.SiLU: lambda module: Curve(functional.silu, _silu_slope, (-2.3993572805154675, 2.3993572805154675), S_SHAPED),
    nn.Mish: lambda module: Curve(functional.mish, _mish_slope, (-2.2563763963607935, 1.4905711794854282), S_SHAPED),
    nn.Hardswish: lambda module: Curve(functional.hardswish, _hardswish_slope, (-3.0, 3.0), (True, True, True)),
    nn.Softplus: lambda module: _softplus(module),
    nn.Softsign: lambda module: Curve(functional.softsign, lambda z: (1 + z.abs()) ** -2, (0.0,), (True, False)),
    nn.SELU: lambda module: Curve(functional.selu, _selu_slope, (0.0,), (True, True)),
}
"""Turning points: the roots of the second derivative, by bisection in float64."""


def is_curve(module: nn.Module) -> bool:
    return type(module) in CURVES


def extremes(curve: Curve, slope: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of f(z) - slope z on [l, u], rounded outwards by the width of the brackets.

    Between two turning points f' is monotone, so f' - slope has at most one root; it is bracketed by halving. On the bracket the
    function differs from its value at either end by at most the width times (STEEP + |slope|).
    """

    def gap(z: Tensor) -> Tensor:
        return curve.value(z) - slope * z

    edges = [lower, *(lower.clamp_min(turn).minimum(upper) for turn in curve.turns), upper]
    lows, highs = [gap(edge) for edge in edges], [gap(edge) for edge in edges]
    for (near, far), rises in zip(pairwise(edges), curve.rises, strict=True):
        with torch.no_grad():
            for _ in range(HALVINGS):
                middle = (near + far) / 2
                before = (curve.slope(middle) < slope) == rises
                near, far = torch.where(before, middle, near), torch.where(before, far, middle)
            width = (far - near) * (STEEP + slope.abs())
        for end in (near, far):
            lows.append(gap(end) - width)
            highs.append(gap(end) + width)
    room = SLACK + curve.error
    return torch.stack(lows).amin(0) - room, torch.stack(highs).amax(0) + room


def interval_of_curve(module: nn.Module, region: Region) -> Region:
    """The values of a curve on a region."""
    curve = CURVES[type(module)](module)
    return between(*extremes(curve, torch.zeros_like(region.center), region.lower, region.upper))


def lines_of_curve(module: nn.Module, region: Region) -> Planes:
    """Lines under and over a curve: of the chord's slope and of the tangents' at both ends and the middle, each time the nearest
    to the curve in the middle of the interval. Any slope is sound, as its line is moved by `extremes`."""
    curve, lower, upper = CURVES[type(module)](module), region.lower, region.upper
    middle = (lower + upper) / 2
    gap = torch.where(upper - lower > 1e-9, upper - lower, 1.0)
    chord = torch.where(upper - lower > 1e-9, (curve.value(upper) - curve.value(lower)) / gap, curve.slope(middle))
    chord = chord.clamp(-STEEP, STEEP)
    candidates = []
    for slope in (chord, curve.slope(middle), curve.slope(lower), curve.slope(upper)):
        least, most = extremes(curve, slope, lower, upper)
        candidates.append((slope, least, most))
    slopes, depths, heights = (torch.stack(parts) for parts in zip(*candidates, strict=True))
    under = (slopes * middle + depths).argmax(0, keepdim=True)
    over = (slopes * middle + heights).argmin(0, keepdim=True)
    return Planes(
        slopes.gather(0, under)[0][:, None], slopes.gather(0, over)[0], heights.gather(0, over)[0], depths.gather(0, under)[0]
    )
