"""Counting of multiply-adds: a cost that does not depend on the machine or its load."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of matrix products and convolutions inside this context, including gradients.

    Other operations (sums, comparisons) cost little in comparison. Slows small operations down by some microseconds each.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            self.count += int(formula(*args, **(kwargs or {}), out_val=found)) // 2
        return found


def of_one_pass(model: torch.nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of one forward pass of these images; at least one each, for a model without products."""
    with torch.no_grad(), MultiplyAdds() as counted:
        model(x)
    return max(int(counted.count), len(x))
