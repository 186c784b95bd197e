"""Constants of a forward as layers: numbers, one for each channel, or one for each value."""

from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.layers import Scale
from robustbench_rkhs.layers.traced_maps import Diagonal
from robustbench_rkhs.lipschitz.bounds import Uncertifiable


def scaled(value: Any, before: tuple[int, ...]) -> list[nn.Module]:
    """Multiplication by a number, or one number per channel."""
    if (whole := _each_value(value, before)) is not None:
        return [Diagonal(whole, torch.zeros_like(whole))]
    constant = per_channel(value, before)
    if constant.numel() == 1:
        return [] if constant.item() == 1 else [Scale(constant.item())]
    return [_fixed(before, weight=constant)]


def shifted(value: Any, before: tuple[int, ...], sign: float) -> list[nn.Module]:
    """Addition (sign 1) or subtraction (sign -1) of a number, or one number per channel."""
    if (whole := _each_value(value, before)) is not None:
        return [Diagonal(torch.ones_like(whole), sign * whole)]
    constant = per_channel(value, before)
    if not constant.any():
        return []
    return [_fixed(before, bias=constant) if sign > 0 else _fixed(before, running_mean=constant)]


def inverse(value: Any) -> Tensor:
    """One over a constant. Raises Uncertifiable where it is no finite number or tensor."""
    if not isinstance(value, int | float | Tensor) or (isinstance(value, Tensor) and value.is_complex()):
        raise Uncertifiable(f"expected a constant number or tensor, found {type(value).__name__}")
    constant = (
        value.detach().to("cpu", torch.float64) if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
    )
    if not constant.isfinite().all():
        raise Uncertifiable("expected a finite constant, found NaN or infinity")
    return 1 / constant


def _each_value(value: Any, before: tuple[int, ...]) -> Tensor | None:
    """A constant tensor that broadcasts to the images and is neither one number nor one per channel, as (1, ...); else None."""
    if not isinstance(value, Tensor) or value.numel() == 1 or value.is_complex():
        return None
    constant = value.detach().to("cpu", torch.float64)
    spread = (1,) * (len(before) + 1 - constant.dim()) + tuple(constant.shape)
    plain = len(before) in (1, 3) and spread == (1, before[0], *(1,) * (len(before) - 1))
    fits = len(spread) == len(before) + 1 and spread[0] == 1 and all(s in (1, b) for s, b in zip(spread[1:], before, strict=True))
    return constant.reshape(spread) if fits and not plain and bool(constant.isfinite().all()) else None


def per_channel(value: Any, before: tuple[int, ...]) -> Tensor:
    """A constant as one number, or one per channel. Raises Uncertifiable where it is neither."""
    if not isinstance(value, int | float | Tensor) or (isinstance(value, Tensor) and value.is_complex()):
        raise Uncertifiable(f"expected a constant number or tensor, found {type(value).__name__}")
    exact = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)  # not by way of float32
    constant = exact.detach().to("cpu", torch.float64)
    if not constant.isfinite().all():
        raise Uncertifiable("expected a finite constant, found NaN or infinity")
    if constant.numel() == 1 and constant.dim() <= len(before) + 1:
        return constant.reshape(1)
    spread = (1,) * (len(before) + 1 - constant.dim()) + tuple(constant.shape)
    if spread != (1, before[0], *(1,) * (len(before) - 1)):
        raise Uncertifiable(f"expected one number or one per channel, found shape {tuple(constant.shape)} on {before}")
    return constant.reshape(-1)


def _fixed(before: tuple[int, ...], **tensors: Tensor) -> nn.Module:
    """A batch norm of variance one that scales and shifts by constants."""
    if len(before) not in (1, 3):
        raise Uncertifiable(f"no rule for a constant per channel on images of {before}")
    norm = (nn.BatchNorm1d if len(before) == 1 else nn.BatchNorm2d)(before[0], eps=0.0, dtype=torch.float64)
    for name, values in tensors.items():
        getattr(norm, name).data = values.expand(before[0]).clone()
    return norm.requires_grad_(False).eval()


def numbers(before: tuple[int, ...], scale: float, shift: float) -> nn.Module:
    """scale x + shift."""
    one = torch.ones((1,) * (len(before) + 1), dtype=torch.float64)
    return Diagonal(scale * one, shift * one)
