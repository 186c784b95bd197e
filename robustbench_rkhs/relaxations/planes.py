"""Linear lower and upper bounds of activations and max-pools on an interval."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.relaxations.region import Region, wide

HALVINGS = 30
"""Halvings of the interval of the point of tangency; any point of it gives a sound line."""


class Planes(NamedTuple):
    """under z + depth <= f(z) <= over z + height, value by value."""

    under: Float[Tensor, "batch rows *shape"]
    over: Float[Tensor, "batch *shape"]
    height: Float[Tensor, "batch *shape"]
    depth: Float[Tensor, "batch *shape"] | None = None


class Bent(NamedTuple):
    """Linear lower bounds before a kink."""

    slopes: Float[Tensor, "batch rows *shape"]
    parts: Float[Tensor, "batch rows *shape"]
    """The constant, one part for each coordinate."""
    balls: Float[Tensor, "batch rows"]
    """What the ball costs, to be subtracted from the constant."""
    errors: Float[Tensor, "batch rows"] | None
    """Bound on the rounding, where it is asked for."""


class Windows(NamedTuple):
    """z[lowest] <= max over the window <= over z[highest] + height."""

    lowest: Int[Tensor, "batch *outputs"]
    highest: Int[Tensor, "batch *outputs"]
    over: Float[Tensor, "batch *outputs"]
    height: Float[Tensor, "batch *outputs"]


def lines_of_kink(left: float, region: Region, slope: Tensor | None = None) -> Planes:
    r"""Lines for max(z, left z) on [l, u]. `slope`: the lower line's position between the two sides, per row.

    Over: the chord. Under: the steeper side if u > -l, else the other; exact where the sign is known.
    """
    return _kink(left, region.lower, region.upper, slope)


def lines_of_gap(lower: Tensor, upper: Tensor) -> Planes:
    """Lines for max(z, 0) on [l, u], where z is the difference of a sorted pair."""
    return _kink(0.0, lower, upper, None)


def _kink(left: float, lower: Tensor, upper: Tensor, slope: Tensor | None) -> Planes:
    bent = (lower < 0) & (upper > 0)
    gap = torch.where(bent, upper - lower, torch.ones_like(upper))
    straight = (lower >= 0).to(upper) + left * (lower < 0).to(upper)
    over = torch.where(bent, (upper - left * lower) / gap, straight)
    height = torch.where(bent, (1 - over) * upper, torch.zeros_like(upper))
    steep = (upper > -lower).to(upper)[:, None] if slope is None else slope
    under = torch.where(bent[:, None], steep * (1 - left) + left, straight[:, None])
    return Planes(under, over, height)


def lines_of_smooth(module: nn.Module, region: Region) -> Planes:
    """Lines for tanh and sigmoid, convex and then concave, and for ELU, which is convex.

    Convex: the chord over, the tangent in the middle under. Else the tangent from the far end, or the chord if the tangent touches
    outside [l, u]. With s the slope, the intercept is the largest f(z) - s z over the ends and the point of tangency, where it
    must be largest; so every point of tangency is sound, and only the tightness of the line depends on the halvings.
    """
    lower, upper = region.lower, region.upper
    if isinstance(module, nn.ELU):
        steep = torch.where(upper - lower > 1e-9, _chord(_value(module, lower), _value(module, upper), lower, upper), 1.0)
        height = torch.maximum(_value(module, lower) - steep * lower, _value(module, upper) - steep * upper)
        middle = (lower + upper) / 2
        under = _slope(module, middle)
        return Planes(under[:, None], steep, height, _value(module, middle) - under * middle)
    over, height = _over(module, lower, upper, 0.0)
    # f(z) = odd - f(-z): the lower line is minus the upper line of the mirror image
    odd = 1.0 if isinstance(module, nn.Sigmoid) else 0.0
    under, depth = _over(module, -upper, -lower, odd)
    return Planes(under[:, None], over, height, -depth)


def _over(module: nn.Module, lower: Tensor, upper: Tensor, odd: float) -> tuple[Tensor, Tensor]:
    """An upper line of f(z) - odd on [l, u]."""
    with torch.no_grad():
        near, far = lower.clamp_min(0), upper.clamp_min(0)
        top = far
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            above = _value(module, middle) + _slope(module, middle) * (lower - middle) >= _value(module, lower)
            near, far = torch.where(above, near, middle), torch.where(above, middle, far)
        touches = _value(module, top) + _slope(module, top) * (lower - top) >= _value(module, lower)
        touch = torch.where(lower >= 0, (lower + upper) / 2, far)
        tangent = (lower >= 0) | ((upper > 0) & touches)
    touch = torch.where(tangent, touch, upper)
    # if the interval is a point, any line through it: take the largest slope, so that rounding of the chord does not matter
    wide_enough = upper - lower > 1e-9
    chord = torch.where(wide_enough, _chord(_value(module, lower), _value(module, upper), lower, upper), _slope(module, upper))
    slope = torch.where(tangent, _slope(module, touch), chord)
    ends = [_value(module, point) - slope * point for point in (lower, touch, upper)]
    height = torch.stack(ends).amax(0)
    # on so narrow an interval the slope is not that of the chord: add the second-order gap that it may hide in between
    return slope, height - odd + torch.where(tangent | wide_enough, 0.0, (upper - lower).square())


def _chord(low: Tensor, high: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return (high - low) / torch.where(upper > lower, upper - lower, 1.0)


def _value(module: nn.Module, z: Tensor) -> Tensor:
    if isinstance(module, nn.ELU):
        return functional.elu(z, module.alpha)
    return z.sigmoid() if isinstance(module, nn.Sigmoid) else z.tanh()


def _slope(module: nn.Module, z: Tensor) -> Tensor:
    if isinstance(module, nn.ELU):
        return torch.where(z > 0, 1.0, module.alpha * z.clamp_max(0).exp())
    return z.sigmoid() * (-z).sigmoid() if isinstance(module, nn.Sigmoid) else 1 - z.tanh().square()


def lines_of_windows(module: nn.MaxPool2d, region: Region) -> Windows:
    """Lines for the maximum over each window.

    Under: the value z of the largest lower bound. Over: with z in [l, u] the value of the largest upper bound and h the
    largest upper bound of the others, max(z, h) lies under the chord from (l, h) to (u, u); it is z itself where l >= h.
    """
    kernel, stride, padding, dilation = (
        (value, value) if isinstance(value, int) else tuple(value)
        for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    lower, upper = region.lower, region.upper
    sides = torch.stack([lower, upper])
    places = torch.arange(lower[0].numel(), device=lower.device).view(1, *lower.shape[1:])
    _, *outputs = module(lower[:1]).shape[1:]
    # with ceil_mode a window may extend over the edge: fill the rest like padding
    needed = [
        (o - 1) * s + d * (k - 1) + 1 - (side + p)
        for o, s, d, k, side, p in zip(outputs, stride, dilation, kernel, lower.shape[2:], padding, strict=True)
    ]
    pads = (padding[1], max(needed[1], 0), padding[0], max(needed[0], 0))

    def windows(values: Tensor, fill: float) -> Tensor:
        padded = functional.pad(values, pads, value=fill)
        taps = [
            padded[..., i * dilation[0] :, j * dilation[1] :][..., :: stride[0], :: stride[1]][..., : outputs[0], : outputs[1]]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]
        return torch.stack(taps, -1)

    lows, highs = windows(wide(sides), -torch.inf).unbind(0)
    where = windows(places, 0).expand(lows.shape)
    lowest, highest = lows.argmax(-1, keepdim=True), highs.argmax(-1, keepdim=True)
    low, high = lows.gather(-1, highest)[..., 0], highs.gather(-1, highest)[..., 0]
    others = highs.scatter(-1, highest, -torch.inf).amax(-1)
    loose = low < others
    rest = torch.where(loose, others, low)
    over = torch.where(loose, (high - rest) / torch.where(loose & (high > low), high - low, 1.0), 1.0)
    height = torch.where(loose, rest - over * low, 0.0)
    return Windows(where.gather(-1, lowest)[..., 0], where.gather(-1, highest)[..., 0], over, height)
