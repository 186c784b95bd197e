"""Digests of weights."""

import hashlib

import torch
from torch import Tensor


def weights_digest(state: dict[str, Tensor]) -> str:
    """sha256 over names, shapes, types and bytes of all tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
