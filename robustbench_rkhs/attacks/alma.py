"""ALMA: the distance and the margin in one augmented Lagrangian."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.attacks.ball import per_image
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.linearised import Near
from robustbench_rkhs.attacks.starts import Seen, StartsAttack
from robustbench_rkhs.node import Real, UserError

EVERY = 10
"""Steps between two looks at whether the margin fell."""


class ALMA(StartsAttack):
    r"""Gradient steps on the squared distance plus a penalty on the margin, whose multiplier is learnt on the way.

    .. math:: \frac{\lVert \delta \rVert_2^2}{2 r^2} + \frac{\max(0, \mu + \rho\, m / m_0)^2 - \mu^2}{2 \rho}, \qquad
              \mu \leftarrow \alpha \mu + (1 - \alpha) \max(0, \mu + \rho\, m / m_0)

    m: the margin; m_0 and r: the gap at the image to the class started towards, and the linearised distance to it, so that neither
    the scale of the logits nor that of the distances matters. rho doubles for an image whose margin, still positive, has not
    fallen by a twentieth in ten steps. Steps with momentum alpha, of `step_size` in these units, a hundredth of it at last.
    Starts on the linearised boundaries of the `starts` nearest classes.
    Cost: at most 2 + starts * (steps + 1) forward and min(candidates + 1, classes) + starts * steps backward passes; a start
    that is hopeless after thirty steps leaves.
    Raises UserError in linf, whose distance has no useful gradient.
    Source: Rony et al., ICCV 2021 (there a learning rate in pixels, RMSProp and a start at the image).
    """

    scouted: ClassVar[int] = 30

    name: Literal["alma"] = "alma"
    steps: int = Field(60, ge=1)
    step_size: Real = Field(0.3, gt=0)
    """Length of the first steps as a share of the Lagrangian's gradient, distances in linearised ones."""
    penalty: Real = Field(4.0, gt=0)
    """First weight rho of the squared margin."""
    momentum: Real = Field(0.7, ge=0, lt=1)
    """alpha: what a step, and a multiplier, keeps of the one before."""

    def search(self, engine: Engine) -> None:
        if self.norm != "l2":
            raise UserError(f"attack 'alma' knows only norm l2, found {self.norm!r}")
        super().search(engine)

    def begin(self, near: Near, length: Float64[Tensor, " some"]) -> tuple[Tensor, ...]:
        """Units of gap and distance, multiplier, penalty, the margin at the last look, and the step before."""
        one = torch.ones_like(near.gap)
        unit = torch.where(near.gap > 0, near.gap, one)
        return unit, length.to(near.gap), one, self.penalty * one, one * torch.inf, torch.zeros_like(near.gradient)

    def move(self, seen: Seen, kept: tuple[Tensor, ...]) -> tuple[Float[Tensor, "some *image"], tuple[Tensor, ...]]:
        """A step down the Lagrangian, then the multiplier."""
        unit, length, multiplier, penalty, looked, velocity = kept
        short = seen.margin / unit
        if seen.step % EVERY == 0:
            stuck = (short > 0) & (short > 0.95 * looked)
            penalty, looked = torch.where(stuck, 2 * penalty, penalty), short
        pull = (multiplier + penalty * short).clamp(1e-6, 1e12)
        slope = seen.delta + seen.gradient * per_image(pull * length * length / unit, seen.x)
        keep = self.momentum if seen.step else 0.0
        velocity = keep * velocity + (1 - keep) * slope
        multiplier = self.momentum * multiplier + (1 - self.momentum) * pull
        return seen.delta - self.step_size * seen.fade * velocity, (unit, length, multiplier, penalty, looked, velocity)
