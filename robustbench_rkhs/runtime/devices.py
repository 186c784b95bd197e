"""Devices: resolving a device name, and describing a device."""

import torch

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason


def usable(name: str | torch.device) -> str:
    """The device of this name; `auto` is the first GPU (cuda, else mps), else the CPU. Raises UserError if it is not available."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        if device.type in ("cpu", "mps") and device.index:
            raise RuntimeError(f"there is one {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise UserError(f"device {str(name)!r} cannot be used here: {reason(error)}") from None
    return device.type if device.type == "cpu" else str(device)


def describe(device: str) -> str:
    """A human-readable name of the device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if torch.device(device).type == "mps":
        return "Apple GPU (mps)"
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'s' * (count > 1)}"
