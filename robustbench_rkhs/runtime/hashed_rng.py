"""Random numbers hashed from (key, counters) on the device: no generator state, no host synchronisation, same on all devices."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64
"""splitmix64's constants, as signed 64-bit numbers."""


def hashed_uniforms(keys: Int[Tensor, " batch"], seed: int, count: int) -> Float[Tensor, "batch count"]:
    """`count` numbers in (0, 1) for each key: odd multiples of 2^-24, hashed from (seed, key, position), the same bits everywhere.

    splitmix64 in wrapping 64-bit integer arithmetic, converted to float32 at the end.
    """
    seed = (seed + 2**63) % 2**64 - 2**63  # signed
    start = _mixed(_mixed(keys.long() * GOLDEN + seed))
    positions = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * GOLDEN
    bits = _shifted(_mixed(start[:, None] + positions), 41)
    return (bits.to(torch.float32) + 0.5) * 2.0**-23


def hashed_normals(keys: Int[Tensor, " batch"], seed: int, x: Float[Tensor, "batch *image"]) -> Float[Tensor, "batch *image"]:
    """Standard normal numbers shaped like `x`, hashed from (seed, key)."""
    uniform = hashed_uniforms(keys, seed, x[0].numel())
    return (torch.erfinv(2 * uniform - 1) * 2**0.5).view_as(x).to(x.dtype)


def _mixed(bits: Tensor) -> Tensor:
    """splitmix64's finalizer."""
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A logical shift to the right (torch's own keeps the sign)."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
