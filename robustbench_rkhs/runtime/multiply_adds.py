"""Counting of multiply-adds: a cost that does not depend on the machine or its load."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

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
            with suppress(Exception):  # an operation in a form that PyTorch's formula does not know is not counted
                self.count += int(formula(*args, **(kwargs or {}), out_val=found)) // 2
        return found
