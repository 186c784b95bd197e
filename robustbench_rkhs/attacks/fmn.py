"""FMN: the ball shrinks towards the nearest adversarial image, and the perturbation is projected into it."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from robustbench_rkhs.attacks.ball import into_ball
from robustbench_rkhs.attacks.shrinking_ball import RadiusAttack


class FMN(RadiusAttack):
    r"""Gradient steps on the margin, projected into a ball that shrinks while the image is adversarial, else grows.

    .. math:: \delta \leftarrow \Pi_{\rho} \left( \delta - \alpha_t \frac{\nabla m}{\lVert \nabla m \rVert_2} \right), \qquad
              \rho \leftarrow (1 \mp \gamma_t) \rho \text{ where } x + \delta \text{ is wrong / right}

    m: the margin. Starts on the linearised boundaries of the `starts` nearest classes; alpha_1 is the image's linearised distance
    (in linf times the root of the number of pixels), not a fixed length, and alpha and gamma fall to a hundredth along a cosine.
    Until both sides of the boundary were seen, the radius follows the linearised distance to it. In l2 it finds the same as `ddn`
    unless a step ends inside the ball; in linf, use this one.
    Cost: at most 2 + starts * (steps + 1) forward and min(candidates, classes - 1) + starts * steps backward passes; a start
    that is hopeless after ten steps is dropped. Then 6 forward and 5 backward passes per `closer` start, and FAB's of those few
    images that got nearer.
    Source: Pintor et al., NeurIPS 2021.
    """

    name: Literal["fmn"] = "fmn"

    def placed(self, delta: Float[Tensor, "some *image"], radius: Float[Tensor, " some"]) -> Float[Tensor, "some *image"]:
        """Projected into the ball."""
        return into_ball(delta, radius, self.norm)
