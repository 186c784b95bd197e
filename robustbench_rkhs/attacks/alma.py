"""ALMA: minimal-norm attack that lowers distance and misclassification constraint in one augmented Lagrangian."""

from typing import Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import into_ball, per_image, unit
from robustbench_rkhs.attacks.ddn import DDN
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.fmn import FMN
from robustbench_rkhs.attacks.hyperplane import filled
from robustbench_rkhs.attacks.line_search import nearer
from robustbench_rkhs.attacks.multi_start import Seen, StartsAttack
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Norm

LAST = 0.01
"""The last step and overshoot, as a share of the first."""
EVERY = 10
"""Steps between two checks whether the constraint violation shrank."""
BEYOND = 0.1
"""How far beyond the boundary an iterate may settle, as a share of the overshoot: bounded, as the linearised distance back to
the boundary of a steep margin stays small at any distance."""
OUTWARDS = 1.05
"""Least growth per step of a perturbation that never crossed: with a zero gradient, only its own direction is left."""
PROGRESS = 0.95
"""The violation counts as shrunk if it is at most this many times its value at the last check."""


class ALMA(StartsAttack):
    r"""Minimal-norm attack on the augmented Lagrangian: norm plus a penalty on the violated constraint, its multiplier adapted.

    .. math:: \min_\delta \lVert \delta \rVert + P(c(\delta), \rho, \mu), \qquad
              c = \frac{m(x + \delta)}{\lVert \nabla m \rVert_* \lVert \delta \rVert}, \qquad
              P'(c) = \begin{cases} \mu + 2 \mu \rho c + \rho^2 c^2 / 2 & c \ge 0 \\ \mu / (1 - \rho c)^2 & c < 0 \end{cases}

    m: the margin; c is its linearised distance to 0 as a share of the present length, so that neither the scale of the
    logits nor that of the distances matters; at the nearest image, where the box does not bind, the multiplier is then 1. mu is
    an exponential moving average of P'(c); rho grows if a start that never crossed came no nearer in ten steps. A step:
    P'(c) grad m / ||grad m||_*, with momentum, then the proximal step of the norm, its length a share of ||delta|| that falls to
    a hundredth exponentially. linf: pixels are weighted by the root mean square of their past gradient, so that all move alike.
    Departures from the paper: c in place of DLR, which knows neither the distance nor two classes; the norm by its proximal step
    rather than its gradient, which makes linf possible (the paper has none); RMSProp's weights only in linf, as the l2 gradient has
    length one; starts on the linearised boundaries of the `starts` nearest classes, not at the image with a line search for the
    step length; c at most 1 on either side, and falling to a hundredth once both sides were seen, as it is uninformative near a
    cliff; an overshoot e_t (c + e_t where right, max(c, 10 c + e_t) where wrong), without which iterates settle just short of the
    boundary; a growth of at least a twentieth per step until the first crossing, but of no more than the linearised distance;
    secants along the line from the image to the nearest found at the end; without an eps, images that no start broke get DDN
    (linf: FMN) with as many steps, which costs the same again.
    Cost: at most 5 + starts * (steps + 1) forward and min(candidates, classes - 1) + starts * steps backward passes; a start
    that is hopeless after ten steps is dropped. Then 6 forward and 5 backward passes per `closer` start, and FAB's of those few
    images that got nearer.
    Source: Rony et al., ICCV 2021.
    """

    name: Literal["alma"] = "alma"
    steps: int = Field(100, ge=1)
    """Gradient steps of each start."""
    step_size: Real = Field(0.5, gt=0)
    """Length of the first step at multiplier 1, as a share of the perturbation's length; the last is a hundredth of it."""
    penalty: Real = Field(4.0, gt=0)
    """Initial rho."""
    growth: Real = Field(1.2, ge=1)
    """Factor by which rho grows."""
    smoothing: Real = Field(0.9, ge=0, lt=1)
    """Decay of the moving average that is the multiplier."""
    momentum: Real = Field(0.5, ge=0, lt=1)
    """Momentum of the gradient."""
    overshoot: Real = Field(0.1, ge=0)
    """e_t at first; a hundredth of it at the end."""

    @torch.no_grad()
    def search(self, engine: Engine) -> None:
        self.walk(engine, engine.open())
        at = engine.open()
        missed = at[~engine.broken[at] & engine.eps[at].isinf()]
        other = DDN if self.norm == "l2" else FMN
        shared = {name: getattr(self, name) for name in ("steps", "starts", "candidates", "hopeless")}
        other(norm=self.norm, **shared).walk(engine, missed)
        self.rescue(engine)
        nearer(engine)

    def begin(self, delta: Float[Tensor, "some *image"], away: Float64[Tensor, " some"]) -> tuple[Tensor, ...]:
        """Initial length, multiplier, rho, violation at the last check, mean gradient and mean squared gradient."""
        one = torch.ones_like(away)
        return away, one, self.penalty * one, torch.inf * one, torch.zeros_like(delta), torch.zeros_like(delta)

    def move(self, seen: Seen, kept: tuple[Tensor, ...]) -> tuple[Float[Tensor, "some *image"], tuple[Tensor, ...]]:
        """A step down the Lagrangian, then the update of the multiplier."""
        first, multiplier, penalty, looked, mean, square = kept
        fade, keep = LAST ** (seen.step / self.steps), self.momentum if seen.step else 0.0
        scale = torch.where(seen.away > 0, seen.away, first)  # back at the image: restart at the initial length
        missing = torch.where(seen.wrong, -seen.gap, seen.gap) / scale
        trusted = torch.where(seen.held & ~seen.never, fade, 1.0).to(missing)
        missing = torch.maximum(torch.minimum(torch.where(missing.isfinite(), missing, 0), trusted), -trusted)
        missing = torch.maximum(missing, torch.where(seen.wrong, missing / BEYOND, missing) + self.overshoot * fade)
        if seen.step % EVERY == 0:
            stuck = seen.never & (missing > PROGRESS * looked)
            penalty, looked = torch.where(stuck, self.growth * penalty, penalty), missing
        pull = slope_of_penalty(missing, penalty, multiplier)
        newton = 1 + missing.clamp_min(0) / (self.step_size * fade)  # no farther than the linearised boundary
        pull = torch.where(seen.never, torch.minimum(pull, newton), pull)
        way = normal(seen.gradient, self.norm)
        mean = keep * mean + (1 - keep) * way * per_image(pull.to(way.dtype), way)
        square = keep * square + (1 - keep) * way**2
        length = (self.step_size * fade * scale).to(way.dtype)
        delta = proximal(seen.delta, mean, square.sqrt(), length, self.norm)
        size = delta.flatten(1).norm(p=2 if self.norm == "l2" else torch.inf, dim=1)
        longer = torch.where(seen.never & (size > 0), (OUTWARDS * seen.away / size).clamp_min(1), 1)
        delta = delta * per_image(longer.to(delta.dtype), delta)
        multiplier = (self.smoothing * multiplier + (1 - self.smoothing) * pull).clamp(1e-6, 1e12)
        return delta, (first, multiplier, penalty, looked, mean, square)


def slope_of_penalty(
    missing: Float64[Tensor, " some"], penalty: Float64[Tensor, " some"], multiplier: Float64[Tensor, " some"]
) -> Float64[Tensor, " some"]:
    """P' of the paper's P2: quadratic where the constraint is violated, falling to 0 where not, the multiplier at 0."""
    short, beyond = missing.clamp_min(0), -missing.clamp_max(0)
    return (multiplier * (1 + 2 * penalty * short) + (penalty * short) ** 2 / 2) / (1 + penalty * beyond) ** 2


def normal(gradient: Float[Tensor, "some *image"], norm: Norm) -> Float[Tensor, "some *image"]:
    """Each gradient scaled to dual norm one: l2, or l1 in linf; zero stays zero."""
    way = unit(gradient)
    return way if norm == "l2" else way / per_image(way.flatten(1).abs().sum(1).clamp_min(0.5), way)


def proximal(
    delta: Float[Tensor, "some *image"],
    gradient: Float[Tensor, "some *image"],
    weight: Float[Tensor, "some *image"],
    length: Float[Tensor, " some"],
    norm: Norm,
) -> Float[Tensor, "some *image"]:
    r"""The gradient step and the proximal step of the norm, of size `length`; in linf in the metric of the weights h of sum 1.

    .. math:: \arg\min_d \; s \lVert d \rVert + \tfrac12 \lVert d - v \rVert_h^2, \qquad v = \delta - s\, g / h

    l2 (h = 1): v shortened by s. linf: v clipped at the height above which its weighted sum is s; 0 where the weight is 0.
    All weights zero: equal weights are used.
    """
    step = per_image(length, delta)
    if norm == "l2":
        moved = delta - step * gradient
        return into_ball(moved, (moved.flatten(1).norm(dim=1) - length).clamp_min(0), norm)
    total = per_image(weight.flatten(1).sum(1), weight)
    weight = torch.where(total > 0, weight / torch.where(total > 0, total, 1), 1 / weight[:1].numel())
    moved = delta - step * torch.where(weight > 0, gradient / torch.where(weight > 0, weight, 1), 0)
    height, size = moved.flatten(1).abs(), weight.flatten(1)
    wanted = ((size * height).sum(1) - length).clamp_min(0)[:, None]
    return moved.sign() * filled(height, size, (size > 0).to(size), size, wanted).view_as(moved)
