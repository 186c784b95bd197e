"""Constant models: no image changes their output, so that no attack on them has a direction."""

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks import APGD, Attack, Ensemble, Square
from robustbench_rkhs.data import Split
from robustbench_rkhs.data.stream import BLOCK
from robustbench_rkhs.evaluation.predictions import answer
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.verdicts import Diagnosis

PROBES = 64
"""Pictures of noise, from dark to bright, beside the clean images."""
NAME = "constant"
"""Name of the diagnosis, and of the mark."""


@torch.no_grad()
def diagnosed_constant(model: nn.Module, split: Split, seed: int) -> Diagnosis | None:
    """The diagnosis of a model that answers the same, to the last bit, for every clean image and every picture of noise.

    None for any other. Cost: a forward pass of one image and one picture; for a constant model, of all images and 64 pictures.
    """
    if not len(split):
        return None
    first = split.x[:1]
    pictures = noise(first, split.box == "unit", seed)
    same = _logits(model, first)
    if not torch.equal(_logits(model, pictures[:1]), same):
        return None
    blocks = [pictures, *(split.x[start : start + BLOCK] for start in range(0, len(split), BLOCK))]
    if not all(bool((_logits(model, block) == same).all()) for block in blocks):
        return None
    words = f"the model answers the same for all {len(split)} images and {PROBES} pictures of noise: nothing can be attacked"
    return Diagnosis(NAME, True, 1.0, 0.0, words, 1 + PROBES / len(split))


def noise(like: Tensor, unit: bool, seed: int) -> Tensor:
    """Pictures of uniform noise, the first black and the last white; without a box, normal noise."""
    random = draws(torch.arange(PROBES, device=like.device), seed, like.expand(PROBES, *like.shape[1:]), 0xC0)
    if not unit:
        return random
    share = torch.linspace(0, 1, PROBES, device=like.device, dtype=like.dtype).view(-1, *[1] * (like.dim() - 1))
    pictures: Tensor = (share + 2 * share * (1 - share) * random).clamp(0, 1)
    return pictures


def protocol_of_constants(norm: Norm, box: Box) -> list[Attack]:
    """The attacks of a constant model: a few steps and queries, as nothing tells one direction from another."""
    return [Ensemble(version="custom", attacks=(APGD(loss="margin", steps=5), Square(queries=50)), norm=norm, box=box)]


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = answer(model, images)
    return logits
