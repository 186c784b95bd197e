"""Distributed training: averages and maxima over all processes."""

import atexit
import os
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch import distributed as dist

from robustbench_rkhs.runtime.meeting import meeting


def join(device: str) -> str:
    """Join the processes that torchrun started (gloo on CPUs, nccl on GPUs); this process's device.

    Does nothing for a single process. The group lives until the interpreter exits: a new one would collide with the addresses
    of the last one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    kind = torch.device(device).type
    if kind == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        store, me, count = meeting()
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=store, rank=me, world_size=count)
        atexit.register(dist.destroy_process_group)
    return device


def wait_for_all() -> None:
    """Barrier: block until every process arrives."""
    if world() > 1:
        dist.barrier()


def average(tensors: Iterable[Tensor]) -> None:
    """Mean over the processes, in place, with one message per dtype."""
    if world() == 1:
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for some in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in some])
        dist.all_reduce(flat)
        flat /= world()
        for tensor, mean in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def world() -> int:
    """Number of processes in the training; 1 without distribution."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank() if world() > 1 else 0


def owned(values: Float[Tensor, " entries"]) -> Bool[Tensor, " entries"]:
    """True where this process holds the largest value of all processes (ties: the lowest rank); all True in a single process.

    A supremum over the whole batch: each process searches its own images, and only the owner differentiates the winner.
    Its terms count `world()` times, since losses and gradients are averaged over the processes.
    """
    if world() == 1:
        return torch.ones_like(values, dtype=torch.bool)
    everyone = [torch.empty_like(values) for _ in range(world())]
    dist.all_gather(everyone, values.detach().contiguous())
    return torch.stack(everyone).argmax(0) == rank()


def smallest(values: Int[Tensor, " entries"], count: int) -> Bool[Tensor, " entries"]:
    """True for the `count` smallest of all processes' values: the same choice however the batch is split among them."""
    candidates = values.sort().values[:count]
    if world() > 1:
        full = torch.full((count,), torch.iinfo(values.dtype).max, dtype=values.dtype, device=values.device)
        full[: len(candidates)] = candidates
        everyone = [torch.empty_like(full) for _ in range(world())]
        dist.all_gather(everyone, full)
        candidates = torch.cat(everyone).sort().values[:count]
    return values <= candidates[-1] if len(candidates) else torch.zeros_like(values, dtype=torch.bool)
