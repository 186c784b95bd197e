"""Context managers of torch around an operation: which are active, and which a piece of code asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp import autocast_mode

AUTOCAST, NO_GRAD, INFERENCE = "torch.autocast", "torch.no_grad", "torch.inference_mode"
DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Devices whose autocast is looked at."""


def active() -> set[str]:
    """Names of the context managers that change how an operation runs, or whether its gradient is kept, here and now."""
    found = {AUTOCAST} if any(torch.is_autocast_enabled(device) for device in DEVICES) else set()
    if torch.is_inference_mode_enabled():
        return found | {INFERENCE}
    return found if torch.is_grad_enabled() else found | {NO_GRAD}


@contextmanager
def noting_autocast(found: set[str]) -> Iterator[None]:
    """Notes an autocast that is made inside, also for a device that this machine lacks, where it does nothing."""
    kind: Any = autocast_mode.autocast
    made = kind.__init__

    def noted(self: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> None:
        made(self, device_type, dtype, enabled, cache_enabled)
        if enabled:
            found.add(AUTOCAST)

    kind.__init__ = noted
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        kind.__init__ = made
