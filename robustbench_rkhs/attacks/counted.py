"""Counting adversarial images: project into ball and box, measure in float64, and classify again."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import distances, pull_inside
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.clock import portions


class Counted(NamedTuple):
    """The verified result of an attack: its images, the classes predicted for them, and their distances."""

    images: Float[Tensor, "batch *image"]
    """The images, exactly inside ball and box; the other fields refer to these."""
    answer: Int[Tensor, " batch"]
    """The class that the model predicts for each; -1 where its logits are not finite."""
    distance: Float64[Tensor, " batch"]
    """The distance from the original image, in the norm of the attack."""

    def misses(self, y: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Which images are misclassified."""
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
    """Verify the images that an attack found for `x`. `eps`: one budget, or one per image; None for no budget.

    `model` is queried in its current mode. Cost: a forward pass per image.
    """
    inside = pull_inside(x, found.to(x), norm, eps, box)
    return Counted(inside, answered(model, inside), distances(x, inside, norm))


@torch.no_grad()
def answered(model: nn.Module, x: Float[Tensor, "batch *image"], batch: int = 256) -> Int[Tensor, " batch"]:
    """The class that the model predicts for each image; -1 where its logits are not finite."""
    said = []
    for some in portions(len(x), batch):
        logits = model(x[some])
        said.append(torch.where(logits.isfinite().all(1), logits.argmax(1), -1))
    return torch.cat(said) if len(x) else torch.zeros(0, dtype=torch.int64, device=x.device)
