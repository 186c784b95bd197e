"""Models in any form that a user passes, as a module that maps images in [0, 1] to logits."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_rkhs.bounds.sketch import sketch
from robustbench_rkhs.data.given import Bounds
from robustbench_rkhs.evaluation.predictions import answer
from robustbench_rkhs.layers.normalize import Normalize
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime import contexts
from robustbench_rkhs.runtime.events import Message, emit
from robustbench_rkhs.runtime.modes import evaluating
from robustbench_rkhs.zoo.containers import unpacked, unwrapped

HALF = (torch.float16, torch.bfloat16)
"""Types that are too coarse for attacked pixels: such a model runs in its own type, while its images stay float32."""

FAR = 16.0
"""Logits whose mean is more than this many times their spread lose significant digits when cast from float64."""


class Function(nn.Module):
    """A function of images as a module. Modes, devices and weights are left to the function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class Adapted(nn.Module):
    """Runs a model in its own float type and returns its logits, selected from its output, in the type of the images.

    Logits in float64 that lie far from 0 for their spread are moved towards it before they are cast, by one number for all
    classes of an image: which is the largest, and by how much, would be lost to rounding.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Any) -> Any:
        out = picked(self.model(x if self.dtype is None else x.to(self.dtype)))
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dtype == x.dtype:
            return out
        if out.dtype == torch.float64 and out.dim() == 2 and out.shape[1]:
            middle = out.detach().mean(1, keepdim=True)
            far = middle.abs() > FAR * (out.detach() - middle).abs().amax(1, keepdim=True)
            out = torch.where(far, out - middle, out)
        return out.to(x.dtype)


def picked(out: Any) -> Any:
    """The logits of an output that has `.logits` or `["logits"]`; any other output unchanged."""
    named = out.get("logits") if isinstance(out, dict) else getattr(out, "logits", None)
    return named if isinstance(named, Tensor) and not isinstance(out, Tensor) else out


def as_module(model: Any) -> nn.Module:
    """The network inside a model (`containers`), or a function of images as a module. Raises UserError for anything else."""
    if isinstance(model, type):
        raise UserError(f"expected a model, found the class {model.__name__}: pass {model.__name__}(...)")
    model, names = unwrapped(model)
    if isinstance(model, nn.Module):
        model, held = unpacked(model)
        names += held
    if isinstance(model, nn.Module):
        if any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()]):
            raise UserError("the model's weights were made in torch.inference_mode(), so no gradient passes it: make it outside")
        if any(tensor.device.type == "meta" for tensor in [*model.parameters(), *model.buffers()]):
            raise UserError("expected a model with weights, found one on the device 'meta', which has none")
        if names:
            emit(Message(text=f"evaluated and certified: the network inside {', '.join(names)}"))
        return model
    if callable(model):
        return Function(model)
    what = "nothing" if model is None else type(model).__name__
    raise UserError(f"expected a model (an nn.Module, a function of images, or a name as after --model), found {what}")


def say_hidden_gradients(model: nn.Module, shape: tuple[int, ...]) -> None:
    """A message where the model's own forward switches gradients off, which attacks need and proofs don't."""
    if found := sorted(sketch(model, shape).contexts & {contexts.NO_GRAD, contexts.INFERENCE}):
        line = f"the model's forward runs under {' and '.join(found)}: attacks see no gradient of what is computed there"
        emit(
            Message(
                text=f"WARNING: {line}, so what survives proves little (certificates are not affected); leave it out of forward"
            )
        )


def home_of(model: nn.Module) -> torch.device | None:
    """The device of the model's weights; None without weights."""
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return None if first is None else first.device


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of its images: that of its first weights; float32 for half precision or without weights."""
    kinds = [tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()]
    return torch.float64 if kinds and kinds[0] == torch.float64 else torch.float32


@torch.no_grad()
def adapted(model: nn.Module, image: Tensor, preprocessing: Any = None, bounds: Bounds = (0.0, 1.0)) -> nn.Module:
    """The model for images in [0, 1], tried on one image: with normalisation, in its own type, returning logits.

    `preprocessing`: mean and standard deviation, each a number or one per channel, in the units of `bounds`; or torchvision's
    Normalize. A module that needs none of this is returned unchanged, so that certificates can use its layers. Raises UserError.
    """
    kinds = [tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()]
    half = kinds[0] if kinds and kinds[0] in HALF else None
    first = normalisation(tuple(image.shape[1:]), preprocessing, bounds)
    dtype = dtype_of(model)
    home = home_of(model) or image.device
    given = image.to(home, dtype)
    given = nn.Sequential(*first).to(home, dtype)(given) if first else given
    with evaluating(model):
        out = answer(model, given if half is None else given.to(half))
    needed = half is not None or picked(out) is not out
    needed = needed or (isinstance(out, Tensor) and out.is_floating_point() and out.dtype != dtype)
    inner = Adapted(model, half) if needed else model
    return inner if not first else nn.Sequential(*[layer.to(home, dtype) for layer in first], inner).train(model.training)


def normalisation(shape: tuple[int, ...], preprocessing: Any, bounds: Bounds) -> list[nn.Module]:
    r"""The normalisation from [0, 1] to the model's training range; None if that is [0, 1] itself.

    .. math:: z = \frac{(l + (h - l) x) - \mu}{\sigma} = \frac{x - (\mu - l) / (h - l)}{\sigma / (h - l)}
    """
    low, high = bounds
    if preprocessing is None and bounds == (0.0, 1.0):
        return []
    channels = shape[0] if len(shape) == 3 else 1
    mean, std = (0.0, 1.0) if preprocessing is None else _two(preprocessing)
    means, stds = (_per_channel(value, channels, word) for value, word in ((mean, "mean"), (std, "std")))
    width = high - low
    layer = Normalize([(value - low) / width for value in means], [value / width for value in stds])
    if len(shape) == 3:
        return [layer]
    flat = [nn.Flatten(), nn.Unflatten(1, (1, 1, int(np.prod(shape)))), layer, nn.Flatten()]
    return flat if len(shape) == 1 else [*flat, nn.Unflatten(1, shape)]


def _two(preprocessing: Any) -> tuple[Any, Any]:
    if isinstance(preprocessing, Mapping) and set(preprocessing) == {"mean", "std"}:
        return preprocessing["mean"], preprocessing["std"]
    if hasattr(preprocessing, "mean") and hasattr(preprocessing, "std") and isinstance(preprocessing, nn.Module):
        return preprocessing.mean, preprocessing.std
    if not isinstance(preprocessing, (tuple, list)) or len(preprocessing) != 2:
        raise UserError(f"preprocessing: expected (mean, std), found {preprocessing!r}")
    return preprocessing[0], preprocessing[1]


def _per_channel(value: Any, channels: int, word: str) -> list[float]:
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=float).reshape(-1)
    except (TypeError, ValueError):
        raise UserError(f"preprocessing: expected a {word} as a number or one per channel, found {value!r}") from None
    if len(array) not in (1, channels):
        wanted = "1 number" if channels == 1 else f"1 or {channels} numbers"
        raise UserError(f"preprocessing: expected a {word} of {wanted}, one per channel, found {len(array)}")
    return [float(one) for one in (np.repeat(array, channels) if len(array) == 1 else array)]
