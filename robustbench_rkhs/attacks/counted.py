"""Where adversarial images are counted: pulled inside ball and box, measured in float64, and the model asked again."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import distances, pull_inside
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.clock import portions


class Counted(NamedTuple):
    """What the images of an attack amount to, whatever it said of them."""

    images: Float[Tensor, "batch *image"]
    """Inside ball and box to the last bit; these are what the rest speaks of."""
    answer: Int[Tensor, " batch"]
    """The class that the model gives each when it is asked again; -1 where its answer is not finite."""
    distance: Float64[Tensor, " batch"]
    """From the image itself, in the norm of the attack."""

    def misses(self, y: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Which are misclassified."""
        return self.answer != y


def count(
    model: nn.Module,
    x: Float[Tensor, "batch *image"],
    found: Float[Tensor, "batch *image"],
    *,
    norm: Norm,
    box: Box,
    eps: float | Float64[Tensor, " batch"] | None,
) -> Counted:
    """The images that an attack found for `x`, counted. `eps`: one budget, or one for each; None where there is none.

    `model`: what is asked, in the mode it is to be asked in. Cost: a forward pass an image.
    """
    inside = pull_inside(x, found.to(x), norm, eps, box)
    return Counted(inside, answered(model, inside), distances(x, inside, norm))


@torch.no_grad()
def answered(model: nn.Module, x: Float[Tensor, "batch *image"], batch: int = 256) -> Int[Tensor, " batch"]:
    """The class the model gives each image; -1 where its answer is not finite."""
    said = []
    for some in portions(len(x), batch):
        logits = model(x[some])
        said.append(torch.where(logits.isfinite().all(1), logits.argmax(1), -1))
    return torch.cat(said) if len(x) else torch.zeros(0, dtype=torch.int64, device=x.device)
