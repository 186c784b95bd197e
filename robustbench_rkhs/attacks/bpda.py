"""BPDA: chosen submodules get the gradient of the identity in the backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.nodes.node import UserError, did_you_mean


@contextmanager
def through(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    r"""Inside this context, each named submodule g has its usual output and the gradient of the identity.

    .. math:: g(x) \text{ forward}, \qquad \partial g(x) / \partial x := I \text{ backward}

    For quantisation, rounding, or a purifying step that stays near its input. Raises UserError for a name that the model
    does not have, and for a module whose output has another shape than its input.
    Source: Athalye et al., ICML 2018, section 4.1.
    """
    there = dict(model.named_modules())
    for name in names:
        if not name or name not in there:
            raise UserError(f"straight_through: no submodule {name!r}; {did_you_mean(name, [known for known in there if known])}")
    handles = [there[name].register_forward_hook(_identity(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _identity(name: str) -> Any:
    def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not given or output.shape != given[0].shape:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"straight_through: {name!r} must keep its input's shape, found {shape}")
        if not torch.is_grad_enabled():
            return output
        result: Tensor = output.detach() + (given[0] - given[0].detach())
        return result

    return hook
