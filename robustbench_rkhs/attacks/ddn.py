"""DDN: minimal-norm attack that decouples the direction of the perturbation from its norm."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_rkhs.attacks.ball import per_image, unit
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.passes import Value
from robustbench_rkhs.attacks.shrinking_ball import RadiusAttack
from robustbench_rkhs.nodes.node import UserError


class DDN(RadiusAttack):
    r"""Unit-norm gradient steps, then rescaling: the perturbation's norm shrinks while adversarial, else grows.

    .. math:: \delta \leftarrow \delta - \alpha_t \frac{\nabla L}{\lVert \nabla L \rVert_2}, \qquad
              \delta \leftarrow \rho \frac{\delta}{\lVert \delta \rVert_2}, \qquad
              \rho \leftarrow (1 \mp \gamma_t) \rho \text{ where } x + \delta \text{ is wrong / right}

    L: the margin, or minus the cross-entropy of logits at clean margin 10. No quantisation. Starts on the linearised boundaries of
    the `starts` nearest classes; alpha_1 is the linearised distance, and alpha and gamma fall to a hundredth along a cosine. Until
    both sides of the boundary were seen, the length follows the linearised distance to it.
    Cost: at most 2 + starts * (steps + 1) forward and min(candidates, classes - 1) + starts * steps backward passes; a start
    that is hopeless after ten steps is dropped. Then 6 forward and 5 backward passes per `closer` start, and FAB's of those few
    images that got nearer.
    Raises UserError in linf, where `fmn` is the counterpart.
    Source: Rony et al., CVPR 2019.
    """

    name: Literal["ddn"] = "ddn"
    loss: Literal["margin", "cross_entropy"] = "margin"
    """The loss that is minimised; neither depends on the scale of the logits."""

    def search(self, engine: Engine) -> None:
        if self.norm != "l2":
            raise UserError(f"attack 'ddn' knows only norm l2, found {self.norm!r}; fmn is its counterpart there")
        super().search(engine)

    def value(self, engine: Engine, at: Int[Tensor, " some"]) -> Value:
        """The margin, or minus the cross-entropy of the logits times the engine's gain."""
        if self.loss == "margin":
            return super().value(engine, at)
        y, gain = engine.y[at], engine.gain[at]
        return lambda logits, rows: -functional.cross_entropy(logits * gain[rows, None], y[rows], reduction="none")

    def placed(self, delta: Float[Tensor, "some *image"], radius: Float[Tensor, " some"]) -> Float[Tensor, "some *image"]:
        """Projected onto the sphere."""
        return unit(delta) * per_image(radius, delta)
