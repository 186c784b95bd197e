"""A network without numbers, built on the device `meta`: names, shapes and types of its state, without using memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.nodes.code_names import cause
from robustbench_rkhs.nodes.node import UserError

SLACK = 4
"""How often a tensor may be registered while a network is built: parametrisations register theirs again."""


def skeleton(network: NetworkNode, shape: tuple[int, ...], classes: int, tensors: int, numbers: int) -> dict[str, Tensor]:
    """The state of the network, with empty tensors. Raises UserError where it cannot be built.

    Stops once the network has more than the given numbers of tensors or entries. Cost: about 0.1 ms per layer of any size.
    """
    try:
        with _counted(SLACK * tensors + 100, SLACK * numbers + 100_000), torch.device("meta"):
            return network.build(shape, classes).state_dict()
    except UserError:
        raise
    except Exception as error:  # sizes that are not possible
        raise UserError(f"network {network.label!r} cannot be made for images of shape {shape}: {cause(error)}") from None


@contextmanager
def _counted(tensors: int, numbers: int) -> Iterator[None]:
    """Raises UserError inside this context, once modules have registered more than this."""
    seen = [0, 0, 0]

    def register(owner: nn.Module, name: str, tensor: Tensor | None) -> None:
        seen[0] += 1
        seen[1] += 0 if tensor is None or isinstance(tensor, nn.UninitializedParameter) else tensor.numel()
        if seen[0] > tensors or seen[1] > numbers:
            raise UserError("the recipe's network asks for more tensors, or larger ones, than the file of weights holds")

    def add(owner: nn.Module, name: str, part: nn.Module | None) -> None:
        seen[2] += 1
        if seen[2] > 20 * tensors:
            raise UserError("the recipe's network has more layers than the file of weights has tensors for")

    register_all: list[Callable[..., Any]] = [
        hooks.register_module_parameter_registration_hook,
        hooks.register_module_buffer_registration_hook,
        hooks.register_module_module_registration_hook,
    ]
    handles = [hook(one) for hook, one in zip(register_all, (register, register, add), strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
