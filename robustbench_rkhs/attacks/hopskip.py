"""HopSkipJump of the library foolbox, with a step length per image and bounded memory."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import Norm

QUESTIONS = 100
"""Decisions that the first step's direction is estimated from; sqrt(k) times as many in the k-th."""
NUMBERS = 2**25
"""Most numbers of noise at once: 128 MiB."""


def hop_skip_jump(
    net: Any,
    x: Float[Tensor, "batch *image"],
    y: Int[Tensor, " batch"],
    starts: Float[Tensor, "batch *image"],
    norm: Norm,
    steps: int,
) -> Float[Tensor, "batch *image"]:
    """Nearer adversarial images than `starts`, from the decisions of foolbox' model `net` alone.

    Raises UserError for a model that does not answer alike twice, which the library takes as a fault of its own.
    """
    import foolbox  # here, not above: it takes a second

    class OwnLength(foolbox.attacks.HopSkipJumpAttack):  # type: ignore[name-defined, misc]
        """The library divides an l2 direction by the length of the whole batch's: here each image's has length 1."""

        def approximate_gradients(self, *given: Any) -> Any:
            way = super().approximate_gradients(*given)
            flat = way.raw.flatten(1)
            return type(way)((flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)).view_as(way.raw))

    attack = OwnLength(steps=steps, initial_gradient_eval_steps=QUESTIONS, constraint=norm)
    size = max(1, int(NUMBERS // (QUESTIONS * steps**0.5 * x[0].numel())))
    criterion, found = foolbox.criteria.Misclassification, []
    for images, labels, points in zip(x.split(size), y.split(size), starts.split(size), strict=True):
        try:
            found.append(attack.run(net, images, criterion(labels), starting_points=points))
        except (AssertionError, ValueError):
            raise UserError("hop_skip_jump expects a model that answers alike twice, found one that does not") from None
    return torch.cat(found)
