"""Random numbers counted by (seed, key, draw): the same at any batch, worker or device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draws(keys: Int[Tensor, " batch"], seed: int, x: Float[Tensor, "batch *image"], draw: int = 0) -> Tensor:
    """Standard normal numbers shaped like `x`, counted by (seed, key, draw): the same at any batch or worker."""
    rows = []
    for key in keys.tolist():
        generator = torch.Generator().manual_seed(mix(seed, key, draw))
        rows.append(torch.randn(x.shape[1:], generator=generator))
    return torch.stack(rows).to(x) if rows else torch.zeros_like(x)


def uniforms(keys: Int[Tensor, " batch"], seed: int, count: int, draw: int = 0) -> Float[Tensor, "batch count"]:
    """`count` numbers in [0, 1) an image, float32, counted by (seed, key, draw): many iterations' worth in one call."""
    found = torch.empty(len(keys), count)
    generator = torch.Generator()
    for row, key in zip(found, keys.tolist(), strict=True):
        torch.rand(count, generator=generator.manual_seed(mix(seed, key, draw)), out=row)
    return found.to(keys.device)


def mix(*numbers: int) -> int:
    """One 63-bit seed from several counters (a multiply and xor chain, splitmix64's constants)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def noisy(x: Float[Tensor, "batch *image"], scale: float, keys: Int[Tensor, " batch"], *counters: int) -> Tensor:
    """x plus Gaussian noise of standard deviation `scale`, counted by (counters, key); x itself where that is 0."""
    return x + scale * draws(keys, mix(*counters), x) if scale else x
