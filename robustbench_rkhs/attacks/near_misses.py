"""What a search in low precision may miss: images that it brings close to the boundary, where the network itself is asked."""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from robustbench_rkhs.attacks.objective import margin

CLOSE = 0.02
"""An image whose margin falls to this share of its clean margin is searched again by the network itself."""
DOUBTED = 2.0
"""An image is asked of the network itself from this multiple of the largest error of a margin that was seen."""
LOWER = 0.1
"""... and again where its margin is lower by this share of that error."""


class NearMisses:
    """The lowest margin inside the ball that a copy of the network showed for each image, and by how much the copy errs.

    The copy's margins are off by up to `error` on all images that both were asked about so far, the clean ones first.
    """

    def __init__(
        self, clean: Float[Tensor, "batch classes"], told: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> None:
        """`clean` and `told`: the logits of the clean images by the network and by the copy."""
        self.y = y
        self.close = CLOSE * margin(clean, y).double().clamp_min(0)
        """The margin below which an image came close."""
        self.lowest = torch.full_like(self.close, torch.inf)
        self.asked = torch.full_like(self.close, torch.inf)
        """The copy's margin where the network itself was asked last."""
        self.error = 0.0
        self.learn(torch.arange(len(y), device=y.device), told, clean)

    def learn(self, at: Int[Tensor, " some"], told: Float[Tensor, "some classes"], answers: Float[Tensor, "some classes"]) -> None:
        """Note by how much the copy's margins differ from those of the network."""
        if len(at):
            apart = (margin(told, self.y[at]).double() - margin(answers, self.y[at]).double()).abs().nan_to_num(nan=torch.inf)
            self.error = max(self.error, float(apart.amax()))

    def rows(
        self, at: Int[Tensor, " some"], told: Float[Tensor, "some classes"], wrong: Int[Tensor, " few"]
    ) -> Int[Tensor, " more"]:
        """The rows that are misclassified by the copy, and those whose margin is near zero."""
        near = (margin(told, self.y[at]).double() < self.limits(at)).nonzero().flatten()
        return torch.cat([wrong, near]).unique() if len(near) else wrong

    def limits(self, at: Int[Tensor, " some"]) -> Float64[Tensor, " some"]:
        """The margins below which these images are close."""
        return self.close[at].clamp_min(2 * DOUBTED * self.error)

    def doubted(
        self, at: Int[Tensor, " few"], told: Float[Tensor, "few classes"], inside: Bool[Tensor, " few"]
    ) -> Bool[Tensor, " few"]:
        """Which of these images, those inside the ball, the network itself must be asked about: where their margin by the copy is
        below the error, and lower than where it was asked before."""
        left = margin(told, self.y[at]).double().nan_to_num(nan=-torch.inf)
        self.lowest.scatter_reduce_(0, at[inside], left[inside], "amin")
        asked = inside & (left < DOUBTED * self.error) & (left < self.asked[at] - LOWER * self.error)
        self.asked.scatter_reduce_(0, at[asked], left[asked], "amin")
        return asked

    def came_close(self) -> Bool[Tensor, " batch"]:
        """Which images came so close that the copy's precision may have decided."""
        return self.lowest < self.limits(torch.arange(len(self.y), device=self.y.device))
