"""Twins of a label: classes that no picture tells from it, such as a copy of its logit."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.passes import Read, gap_slopes
from robustbench_rkhs.nodes.threat_model import Norm

CLEAR = 1e-6
"""A misclassification by less than this share of the spread of the logits (there or of the clean image) is not kept, and the attack
goes on: in another batch, whose last bits differ, it might be classified correctly. An exact tie is kept if it is one in another
batch too. The spread, as a constant added to all logits must change nothing."""


@torch.no_grad()
def twins_of(
    read: Read,
    x: Float[Tensor, "batch *image"],
    y: Int[Tensor, " batch"],
    logits: Float[Tensor, "batch classes"],
    right: Bool[Tensor, " batch"],
    norm: Norm,
) -> Bool[Tensor, "batch classes"] | None:
    """The classes tied with an image's label whose gap has no gradient either; None where there are none.

    The margin of such an image is 0 everywhere until a third class passes both, so that no attack on it has a direction: a
    twin is no target. Tied: by less than CLEAR; no gradient: across the whole box it would change the gap by less than that.
    Cost: nothing without a tie; else a forward pass, and a backward pass per tied class, of the images that are tied.
    """
    classes = logits.shape[1]
    if classes < 3 or not len(x):
        return None
    spread = logits.amax(1) - logits.amin(1)
    tied = ((logits - logits.gather(1, y[:, None])).abs() <= CLEAR * spread[:, None]) & right[:, None]
    tied = tied.scatter(1, y[:, None], False)
    if not tied.any():
        return None
    size = 1.0 if norm == "linf" else x[:1].numel() ** 0.5
    for kind in tied.any(0).nonzero().flatten().tolist():
        at = tied[:, kind].nonzero().flatten()
        for _, _, slope in gap_slopes(read, x[at], y[at], torch.full_like(at, kind)[:, None]):
            steep = slope.flatten(1).norm(p=2 if norm == "l2" else 1, dim=1) * size
            tied[at, kind] = steep <= CLEAR * spread[at]
    tied &= (tied.sum(1) < classes - 1)[:, None]  # of a constant model nothing would be left to aim at
    return tied if tied.any() else None
