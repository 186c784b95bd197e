"""The base class of samplers: from training images to a source of random images."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import Node
from robustbench_rkhs.runtime.counter_rng import draws, mix

Source = Callable[[Tensor, int], Tensor]
"""source(keys, count) -> (keys x count, *image): `count` images per key, consecutive, and always the same for a key."""
STREAM = 0x5A4D
"""Separates samples from the random numbers of attacks with the same seed and keys."""


class SamplerNode(Node):
    """Base class of samplers. `prepare(split, seed)` fits it; the global random state is unchanged."""

    def prepare(self, split: Split, seed: int) -> Source:
        """The distribution fitted to the training images, as a source. Raises UserError where that fails."""
        raise TypeError(f"{type(self).__name__} is not a sampler by itself")


def normals(keys: Int[Tensor, " batch"], seed: int, count: int, shape: tuple[int, ...]) -> Float[Tensor, "samples *shape"]:
    """Standard normal numbers for each key's samples, seeded by (seed, key)."""
    return draws(keys.cpu(), mix(seed, STREAM), torch.empty(len(keys), count, *shape)).flatten(0, 1)


def uniforms(keys: Int[Tensor, " batch"], seed: int, count: int, shape: tuple[int, ...]) -> Float64[Tensor, "samples *shape"]:
    """Uniform numbers in [0, 1] for each key's samples: the normal distribution function of `normals`."""
    result: Tensor = torch.special.ndtr(normals(keys, seed, count, shape).double())
    return result
