"""How many threads an evaluation computes on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from robustbench_rkhs.evaluation.multiply_adds import estimated

FEW = 1e7
"""Multiply-adds of one image, about, up to which more threads are not worth what they cost."""


def on_one_thread(model: nn.Module, shape: tuple[int, ...], workers: int | None, device: str) -> bool:
    """Whether each process computes on one thread: where a number of workers is given, and for a small network on a CPU.

    Then what is found depends on no number of workers or cores.
    """
    if workers is not None:
        return True
    return torch.device(device).type == "cpu" and estimated(model, shape) < FEW


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """One thread of PyTorch, where wanted; then as many as before."""
    threads = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
