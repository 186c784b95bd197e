"""Digests of weights."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustbench_rkhs.nodes.node import UserError


def check_state(state: Mapping[str, Any]) -> None:
    """Raises UserError unless a state holds only dense numeric tensors: anything else would escape the digest."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"the model's state is not only tensors: {name!r} is a {type(value).__name__} "
                "(get_extra_state, or a quantised module); expected a float network whose state_dict() holds tensors"
            )
        if value.layout != torch.strided or value.is_quantized:
            kind = "quantised" if value.is_quantized else str(value.layout)
            raise UserError(f"the model's tensor {name!r} is {kind}: expected dense tensors of numbers")


def weights_digest(state: Mapping[str, Any]) -> str:
    """sha256 over names, shapes, types and bytes of all tensors, in the order of their names. Raises UserError as `check_state`."""
    check_state(state)
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
