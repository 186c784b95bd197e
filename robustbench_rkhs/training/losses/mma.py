"""Max-margin adversarial training: push the decision boundary away from each image, at its nearest point."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.attacks.ball import per_image as spread
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.losses.base import LossNode
from robustbench_rkhs.training.losses.inner_search import ascend


class MMA(LossNode):
    r"""Cross-entropy at the nearest misclassified point of each image, which pushes the boundary away from the image.

    .. math:: \frac1n \sum_i c\, CE(f(x_i), y_i) + (1 - c)\, m_i, \qquad
              m_i = \begin{cases} CE(f(x_i), y_i) & x_i \text{ wrong} \\
                                  CE(f(x_i + \delta_i), y_i) & x_i \text{ right}, \lVert \delta_i \rVert \le \varepsilon_{max} \\
                                  0 & \text{otherwise} \end{cases}

    delta_i stands for the shortest successful perturbation: the radius d of an image grows by the gradient of the loss there,
    up to a positive factor, and the last case is the flat part of the hinge max(0, eps_max - d). It is found by `steps` steps
    of gradient descent on the margin f_y - max_j f_j from x_i in the ball of radius `eps_max` (the last iterate, where it is
    wrong), then by `bisections` halvings of the segment from x_i to it, whose misclassified end is used. So it is the shortest
    along one direction, within eps_max / 2^bisections, and at least as long as the true one. If the search fails although a
    successful perturbation exists, the image counts as having none within eps_max.
    Unlike in the published training, radii are not remembered between epochs: each search starts from `eps_max`.
    The search runs BatchNorm with its running statistics and dropout off; then clean and perturbed images go through the model
    in one pass, in its current mode: BatchNorm updates once, on both halves together.
    Units: nats; eps_max in pixels of [0, 1]. Cost: `steps` forward and image-only backward passes and 1 + `bisections` forward
    passes, then one pass over twice the images forward and backward.
    Source: Ding et al., "MMA Training: Direct Input Space Margin Maximization", ICLR 2020.
    """

    attacks: ClassVar[bool] = True

    name: Literal["mma"] = "mma"
    norm: Norm = "l2"
    """Norm of the perturbation."""
    eps_max: Real = Field(1.0, ge=0)
    """The largest radius that is trained for, in pixels of [0, 1]."""
    clean: Real = Field(1 / 3, ge=0, le=1)
    """c: share of the cross-entropy on clean images, which stabilises the training."""
    steps: int = Field(10, ge=1)
    """Gradient steps of the search."""
    step_size: Real | None = Field(None, gt=0)
    """Length of a step, in the norm's unit; default: 2.5 eps_max / steps."""
    bisections: int = Field(10, ge=1)
    """Halvings of the segment from the image to the perturbed image."""
    box: Box = "unit"
    """`unit`: perturbed images stay in [0, 1]; `none`: anywhere."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        moved, counts = self.search(model, x.detach(), y)
        clean, perturbed = model(torch.cat([x, moved])).float().chunk(2)
        nearest = functional.cross_entropy(perturbed, y, reduction="none")
        margins = torch.where(counts, nearest, torch.zeros_like(nearest)).mean()
        return self.clean * functional.cross_entropy(clean, y) + (1 - self.clean) * margins

    def search(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Float[Tensor, "batch *image"], Bool[Tensor, " batch"]]:
        """The nearest misclassified image found for each (itself if misclassified), and whether there is one within eps_max."""
        with per_image(model):
            far = ascend(
                lambda images: -margin(model(images).float(), y),
                x,
                x,
                norm=self.norm,
                eps=self.eps_max,
                steps=self.steps,
                step_size=self.step_size or 2.5 * self.eps_max / self.steps,
                box=self.box,
            )
            with torch.no_grad():
                wrong = self._wrong(model, x, y)
                reached = self._wrong(model, far, y)
                low, high = x.new_zeros(len(x)), x.new_ones(len(x))
                high[wrong] = 0
                for _ in range(self.bisections):
                    middle = (low + high) / 2
                    over = self._wrong(model, torch.lerp(x, far, spread(middle, x)), y)
                    low, high = torch.where(over, low, middle), torch.where(over, middle, high)
                return torch.lerp(x, far, spread(high, x)), wrong | reached

    @staticmethod
    def _wrong(model: nn.Module, images: Tensor, y: Tensor) -> Bool[Tensor, " batch"]:
        return margin(model(images), y) <= 0
