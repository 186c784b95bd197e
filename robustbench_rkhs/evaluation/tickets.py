"""Tickets: a number for an image together with what the model answered to it, under which its results are kept."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

BITS = 39
"""Bits of the answer in a ticket; those above are the image's index, so that no two images share a ticket."""
STEPS = 256.0
"""Steps from 0 to the largest logit of an image, in absolute value, and of an octave of that."""


def tickets_of(index: Sequence[int], logits: Float[Tensor, "images classes"]) -> tuple[int, ...]:
    """The ticket of each image: its index, and bits of the sha256 of its clean logits, in steps of 1/256 of the largest, and of it.

    So code that changed while the weights did not gets no old result, and a larger sample gets those of a smaller one, although the
    last bits of logits depend on the batch.
    """
    exact = logits.cpu().double()
    largest = exact.abs().amax(1, keepdim=True).clamp_min(1e-300)
    steps = torch.cat([exact * (STEPS / largest), largest.log2() * STEPS], 1).round() + 0.0  # + 0.0: one zero, not two
    hashes = (hashlib.sha256(row.tobytes()).digest() for row in steps.numpy())
    return tuple(plain_ticket(one) | int.from_bytes(sha[:5], "big") >> 1 for one, sha in zip(index, hashes, strict=True))


def plain_ticket(index: int) -> int:
    """The ticket of an image whose answer is not known."""
    return int(index) << BITS
