"""HopSkipJump from the library foolbox, with a step length per image and bounded memory."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import Norm

QUESTIONS = 100
"""Decisions from which the direction of the first step is estimated; step k uses sqrt(k) times as many."""
NUMBERS = 2**25
"""The most noise drawn at once, in numbers: 128 MiB."""


def hop_skip_jump(
    net: Any,
    x: Float[Tensor, "batch *image"],
    y: Int[Tensor, " batch"],
    starts: Float[Tensor, "batch *image"],
    norm: Norm,
    steps: int,
) -> Float[Tensor, "batch *image"]:
    """Adversarial images nearer than `starts`, found from the decisions of foolbox's model `net` alone.

    Raises UserError for a model whose outputs differ between two queries, as the library would fail with an internal error.
    """
    import foolbox  # imported here: it takes a second

    class OwnLength(foolbox.attacks.HopSkipJumpAttack):  # type: ignore[name-defined, misc]
        """The library normalises an l2 direction over the whole batch; here each image's direction has length 1."""

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
            raise UserError("hop_skip_jump expects a deterministic model, found outputs that differ between two queries") from None
    return torch.cat(found)
