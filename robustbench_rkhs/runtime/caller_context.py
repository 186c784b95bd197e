"""PyTorch's global switches as they are after import, for as long as one of our functions runs, whatever the caller has set."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from robustbench_rkhs.nodes.node import UserError

DEVICES = ("cpu", "cuda")
"""Device types whose autocast a caller may have entered."""


@contextmanager
def own_context(autocast: bool = False) -> Iterator[None]:
    """Inside, new tensors are float32 on the CPU, gradients can be taken, NaN raises nothing; then all is as it was, also what the
    code that ran inside has switched.

    Each of these would change what is found without a word: in inference mode gradients are silently zero, under another default
    type random starts are rounded, on the default device `meta` there are no numbers, and anomaly detection ends an
    attack at the first NaN, which it would have stepped over. Autocast makes another network of the model: UserError in one line,
    or with `autocast` (where nothing is measured) it is left for the time.
    """
    if not autocast:
        refuse_autocast()
    kind, home = torch.get_default_dtype(), torch.get_default_device()
    anomaly, check = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    with ExitStack() as stack:
        stack.callback(torch.autograd.set_detect_anomaly, anomaly, check)
        stack.callback(torch.set_default_dtype, kind)
        stack.callback(_return_to, home)
        torch.set_default_dtype(torch.float32)
        torch.autograd.set_detect_anomaly(False)
        if home.type != "cpu":  # only where needed, as it slows every call
            stack.enter_context(torch.device("cpu"))
        for device in DEVICES:
            stack.enter_context(torch.autocast(device, enabled=False))
        with torch.inference_mode(False), torch.enable_grad(), np.errstate(all="warn", under="ignore"):
            yield


def _return_to(home: torch.device) -> None:
    """The default device as it was, where code that ran meanwhile has set another."""
    if torch.get_default_device() != home:
        torch.set_default_device(None if home.type == "cpu" else home)


def refuse_autocast() -> None:
    """Raises UserError under autocast."""
    for device in DEVICES:
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
            raise UserError(f"under autocast to {kind} on {device} the model is another network: leave the autocast block")
