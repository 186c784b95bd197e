"""Which floating types a forward pass computes in: what a model rounds its image to is not seen in its graph."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

COARSE = (torch.float16, torch.bfloat16)
"""Types that round a pixel by more than attacks need."""


def coarse_weights(model: nn.Module) -> str:
    """Why a model with weights in half precision has no certificate; empty for others."""
    kinds = {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]} & set(COARSE)
    return refusal(kinds)


def coarse_steps(model: nn.Module, x: Tensor) -> str:
    """The same for a model that rounds to half precision somewhere on its way (autocast in its forward, a cast), by running it."""
    with torch.no_grad(), _Types() as seen:
        model(x)
    return refusal(seen.found & set(COARSE))


def refusal(kinds: Iterable[torch.dtype]) -> str:
    """The reason, which names these types; empty where there is none."""
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return f"it computes in {names}, which rounds the image that it is given further than any bound here covers" if names else ""


class _Types(TorchDispatchMode):
    """Notes the types of all tensors that operations return inside this context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, Tensor):
                self.found.add(one.dtype)
        return out
