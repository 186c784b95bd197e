"""Several processes that train one model: what is averaged, and who owns a maximum over all of them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch import distributed as dist


def world() -> int:
    """Processes that share the training; 1 alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if world() > 1 else 0


def owned(values: Float[Tensor, " entries"]) -> Bool[Tensor, " entries"]:
    """True where this process holds the largest value of all processes (the lowest rank at ties); all True alone.

    A supremum over the whole batch: each process searches its own images, and only the owner differentiates the winner.
    Its terms count `world()` times, since losses and gradients are averaged over the processes.
    """
    if world() == 1:
        return torch.ones_like(values, dtype=torch.bool)
    everyone = [torch.empty_like(values) for _ in range(world())]
    dist.all_gather(everyone, values.detach().contiguous())
    return torch.stack(everyone).argmax(0) == rank()
