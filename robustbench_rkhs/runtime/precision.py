"""Full precision: TF32, bfloat16 and Winograd short cuts and autocast switched off while anything is measured or proved."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from robustbench_rkhs.runtime.caller_context import refuse_autocast


@contextmanager
def full_precision() -> Iterator[None]:
    """TF32 (cuDNN, cuBLAS) and reduced-precision products off, NNPACK off, autocast refused; as before afterwards.

    PyTorch lets cuDNN convolve float32 in TF32 (10 bits of significand) unless told otherwise, and a user may have allowed more:
    what is then measured is not the float32 network. NNPACK convolves batches of 16 and more on a CPU by Winograd or Fourier
    transforms, whose rounding no sum of products bounds. Raises UserError where it is called under autocast.
    """
    refuse_autocast()
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(precision)


def reduced() -> list[str]:
    """Which reduced-precision short cuts are on, in words; none inside `full_precision`."""
    found = []
    if torch.get_float32_matmul_precision() != "highest":
        found.append(f"float32 matrix products at precision {torch.get_float32_matmul_precision()!r}")
    if torch.backends.cuda.matmul.allow_tf32:
        found.append("TF32 matrix products")
    if torch.backends.cudnn.allow_tf32:
        found.append("TF32 convolutions")
    if _nnpack():
        found.append("NNPACK convolutions")
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            found.append(f"autocast on {device}")
    return found


def _nnpack() -> bool:
    """Whether NNPACK is on: its flag can only be read by setting it."""
    (was,) = torch.backends.nnpack.set_flags(False)
    torch.backends.nnpack.set_flags(was)
    return bool(was)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's own type of number inside of an autocast block; nothing where it holds no numbers (device `meta`)."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
