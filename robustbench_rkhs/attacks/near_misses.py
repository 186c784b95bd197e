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

    The copy's margins are off by up to `error` on all images that both were asked about so far: the clean ones first, and at the
    end the lowest point found for each (`compare`), so that no network hides from the copy away from its images.
    """

    def __init__(
        self,
        x: Float[Tensor, "batch *image"],
        clean: Float[Tensor, "batch classes"],
        told: Float[Tensor, "batch classes"],
        y: Int[Tensor, " batch"],
    ) -> None:
        """`clean` and `told`: the logits of the clean images `x` by the network and by the copy."""
        self.y, self.error = y, 0.0
        self.close = CLOSE * margin(clean, y).double().clamp_min(0)
        """The margin below which an image came close."""
        self.points, self.lowest = x.clone(), margin(told, y).double()
        """The point of the lowest margin by the copy inside the ball, and that margin; at first the clean image."""
        self.asked = torch.full_like(self.close, torch.inf)
        """The copy's margin where the network itself was asked last."""
        self.learn(torch.arange(len(y), device=y.device), told, clean)

    def learn(self, at: Int[Tensor, " some"], told: Float[Tensor, "some classes"], answers: Float[Tensor, "some classes"]) -> None:
        """Note by how much the copy's margins differ from those of the network."""
        self._note(margin(told, self.y[at]).double(), margin(answers, self.y[at]).double())

    def compare(self, at: Int[Tensor, " some"], answers: Float[Tensor, "some classes"]) -> None:
        """The same at these images' lowest points; `answers`: the network's logits there."""
        self._note(self.lowest[at], margin(answers, self.y[at]).double())

    def _note(self, told: Float64[Tensor, " some"], true: Float64[Tensor, " some"]) -> None:
        if len(told):
            self.error = max(self.error, float((told - true).abs().nan_to_num(nan=torch.inf).amax()))

    def lower(self, at: Int[Tensor, " some"], told: Float[Tensor, "some classes"]) -> Int[Tensor, " few"]:
        """The rows whose margin is below the lowest of their image so far."""
        return (~(self._left(at, told) >= self.lowest[at])).nonzero().flatten()

    def keep(self, at: Int[Tensor, " few"], images: Float[Tensor, "few *image"], told: Float[Tensor, "few classes"]) -> None:
        """Take these points, which are `lower` and inside the ball: of several of an image the lowest, the first of equals."""
        left = self._left(at, told)
        order = left.argsort(stable=True)
        order = order[at[order].argsort(stable=True)]
        places, several = at[order].unique_consecutive(return_counts=True)
        first = order[several.cumsum(0) - several]
        self.points[places], self.lowest[places] = images[first], left[first]

    def rows(
        self, at: Int[Tensor, " some"], told: Float[Tensor, "some classes"], wrong: Int[Tensor, " few"]
    ) -> Int[Tensor, " more"]:
        """The rows that are misclassified by the copy, and those whose margin is below twice the largest error."""
        near = (self._left(at, told) < DOUBTED * self.error).nonzero().flatten()
        return torch.cat([wrong, near]).unique() if len(near) else wrong

    def doubted(
        self, at: Int[Tensor, " few"], told: Float[Tensor, "few classes"], inside: Bool[Tensor, " few"]
    ) -> Bool[Tensor, " few"]:
        """Which of these images, those inside the ball, the network itself must be asked about: where their margin by the copy is
        below twice the error, and lower than where it was asked before."""
        left = self._left(at, told)
        asked = inside & (left < DOUBTED * self.error) & ~(left >= self.asked[at] - LOWER * self.error)
        self.asked.scatter_reduce_(0, at[asked], left[asked], "amin")
        return asked

    def came_close(self) -> Bool[Tensor, " batch"]:
        """Which images came so close that the copy's precision may have decided: below `close`, or four times the error."""
        return self.lowest < self.close.clamp_min(2 * DOUBTED * self.error)

    def _left(self, at: Int[Tensor, " some"], told: Float[Tensor, "some classes"]) -> Float64[Tensor, " some"]:
        """The margins by the copy; no number counts as the lowest."""
        return margin(told, self.y[at]).double().nan_to_num(nan=-torch.inf)
