"""The closed list of traced operations, and the layers that compute them. Any other operation is refused by name."""

import copy
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.bounds.constants import numbers, per_channel, scaled, shifted
from robustbench_rkhs.bounds.normalising import NORMALISING, group_norm, layer_norm, standardised
from robustbench_rkhs.bounds.rearranging import reduced
from robustbench_rkhs.bounds.tracing import is_torchvision_normalize
from robustbench_rkhs.layers.traced_maps import Pick
from robustbench_rkhs.lipschitz.bounds import Uncertifiable
from robustbench_rkhs.lipschitz.guard import leaves

UNCOMPUTED = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d)
"""Layers that (in eval mode) do no arithmetic."""
ATTENTION = "attention multiplies values that all depend on the image: it has no Lipschitz bound"
SOFTMAX = "no rule for a softmax; at the end of a model, leave it out: the largest class is the same"
UNRULED: dict[type[nn.Module], str] = {
    nn.LocalResponseNorm: "it divides by the sizes of the image's values: no bound is proved here",
    nn.MultiheadAttention: ATTENTION,
    nn.Softmax: SOFTMAX,
}
"""Layers that are known and have no rule, and why."""


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    if training:
        raise Uncertifiable("it is random in every mode, as it is called without training=self.training")
    return nn.Identity()


def _pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> nn.Module:
    if mode != "constant" or value or len(pad) > 4:
        raise Uncertifiable(
            f"no rule for padding {tuple(pad)} in mode {mode!r} with value {value}, expected zeros around the image"
        )
    left, right, top, bottom = (*pad, *(0,) * (4 - len(pad)))
    return nn.ZeroPad2d((left, right, top, bottom))


def _flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


def _max_pool(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride or None, padding, dilation, return_indices, ceil_mode)


def _average_pool(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> nn.Module:
    return nn.AvgPool2d(kernel_size, stride or None, padding, ceil_mode, count_include_pad, divisor_override)


def _linear(x: Any, weight: Any, bias: Any = None) -> nn.Module:
    return _weighted(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight, bias)


def _convolution(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module:
    sizes = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
    return _weighted(nn.Conv2d(*sizes, stride, padding, dilation, groups, bias is not None), weight, bias)


def _log_softmax(x: Any, dim: Any = None, _stacklevel: int = 3, dtype: None = None) -> nn.Module:
    if dtype is not None:
        raise Uncertifiable("no rule for a log-softmax in another type")
    return nn.LogSoftmax(dim)


def _interpolate(
    x: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> nn.Module:
    if antialias:
        raise Uncertifiable("no rule for antialias")
    return nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


def _transposed(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> nn.Module:
    sizes = (weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]))
    kinds: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kind = kinds[weight.dim() - 3]
    return _weighted(kind(*sizes, stride, padding, output_padding, groups, bias is not None, dilation), weight, bias)


def _convolution_3d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module:
    sizes = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
    return _weighted(nn.Conv3d(*sizes, stride, padding, dilation, groups, bias is not None), weight, bias)


def clamp(before: tuple[int, ...], x: Any, min: Any = None, max: Any = None) -> list[nn.Module]:
    """Values cut off at numbers: a ReLU around each limit; both limits are nn.Hardtanh."""
    low, high = (None if limit is None else float(per_channel(limit, ()).item()) for limit in (min, max))
    if low is not None and high is not None and low < high:
        return [nn.Hardtanh(low, high)]
    if low is not None and high is None:
        return [nn.ReLU()] if low == 0 else [numbers(before, 1.0, -low), nn.ReLU(), numbers(before, 1.0, low)]
    if high is not None and low is None:
        return [numbers(before, -1.0, high), nn.ReLU(), numbers(before, -1.0, high)]
    raise Uncertifiable(f"expected limits in order, found {min} and {max}")


def summed(before: tuple[int, ...], x: Any, dim: Any = None, keepdim: bool = False, dtype: None = None) -> list[nn.Module]:
    """A sum over dimensions."""
    if dtype is not None:
        raise Uncertifiable("no rule for a sum in another type")
    return reduced(before, dim, keepdim, False)


def largest(before: tuple[int, ...], x: Any, dim: Any = (), keepdim: bool = False) -> list[nn.Module]:
    """The largest value of each channel."""
    found = sorted(d % (len(before) + 1) for d in ([dim] if isinstance(dim, int) else dim))
    if found != [2, 3] or len(before) != 3:
        raise Uncertifiable(f"no rule for the largest value over dimensions {dim} of (batch, *{before})")
    pool = nn.MaxPool2d(before[1:])
    return [pool] if keepdim else [pool, nn.Flatten()]


def normalized(before: tuple[int, ...], x: Any, mean: Any, std: Any, inplace: bool = False) -> list[nn.Module]:
    """torchvision's normalize: (x - mean) / std by channel."""
    if inplace:
        raise Uncertifiable("it writes into its image: leave out inplace=True")
    sides = (1,) * (len(before) - 1)
    center, spread = (torch.tensor([float(one) for one in values], dtype=torch.float64).view(-1, *sides) for values in (mean, std))
    return [*shifted(center, before, -1), *scaled(1 / spread, before)]


def batch_norm(
    before: tuple[int, ...],
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[nn.Module]:
    """A normalisation by statistics that the forward passes on."""
    if training or running_mean is None or running_var is None:
        raise Uncertifiable("it normalises by the batch, mixing images")
    if len(before) not in (1, 3):
        raise Uncertifiable(f"no rule for a batch norm of images of {before}")
    layer = (nn.BatchNorm1d if len(before) == 1 else nn.BatchNorm2d)(before[0], eps, dtype=torch.float64)
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, values in given.items():
        if values is not None:
            getattr(layer, name).data = values.detach().double().clone()
    return [layer.requires_grad_(False).eval()]


def _torch_batch_norm(
    before: tuple[int, ...],
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> list[nn.Module]:
    return batch_norm(before, x, mean, var, weight, bias, training, momentum, eps)


def _weighted(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach().double().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().double().clone(), requires_grad=False)
    result: nn.Module = layer.eval()
    return result


LAYERS: dict[Any, Callable[..., nn.Module]] = {
    functional.relu: lambda x, inplace=False: nn.ReLU(),
    functional.leaky_relu: lambda x, negative_slope=0.01, inplace=False: nn.LeakyReLU(negative_slope),
    functional.relu6: lambda x, inplace=False: nn.ReLU6(),
    functional.elu: lambda x, alpha=1.0, inplace=False: nn.ELU(alpha),
    functional.selu: lambda x, inplace=False: nn.SELU(),
    functional.celu: lambda x, alpha=1.0, inplace=False: nn.CELU(alpha),
    functional.gelu: lambda x, approximate="none": nn.GELU(approximate),
    functional.silu: lambda x, inplace=False: nn.SiLU(),
    functional.softplus: lambda x, beta=1.0, threshold=20.0: nn.Softplus(beta, threshold),
    functional.hardtanh: lambda x, min_val=-1.0, max_val=1.0, inplace=False: nn.Hardtanh(min_val, max_val),
    functional.softsign: lambda x: nn.Softsign(),
    functional.hardswish: lambda x, inplace=False: nn.Hardswish(),
    functional.max_pool2d: _max_pool,
    functional.avg_pool2d: _average_pool,
    functional.dropout: _dropout,
    functional.dropout2d: _dropout,
    functional.pad: _pad,
    functional.mish: lambda x, inplace=False: nn.Mish(),
    functional.hardsigmoid: lambda x, inplace=False: nn.Hardsigmoid(),
    functional.interpolate: _interpolate,
    **dict.fromkeys((functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d), _transposed),
    functional.conv3d: _convolution_3d,
    **dict.fromkeys((functional.log_softmax, torch.log_softmax, "log_softmax"), _log_softmax),
    torch.abs: lambda x: nn.LeakyReLU(-1.0),
    "abs": lambda x: nn.LeakyReLU(-1.0),
    operator.abs: lambda x: nn.LeakyReLU(-1.0),
    functional.pixel_unshuffle: lambda x, downscale_factor: nn.PixelUnshuffle(downscale_factor),
    functional.pixel_shuffle: lambda x, upscale_factor: nn.PixelShuffle(upscale_factor),
    functional.linear: _linear,
    functional.conv2d: _convolution,
    torch.flatten: _flatten,
    "flatten": _flatten,
    "contiguous": lambda x: nn.Identity(),
}
for _target in (torch.relu, torch.relu_, functional.relu_, "relu", "relu_"):
    LAYERS[_target] = lambda x: nn.ReLU()
for _target in (torch.tanh, torch.tanh_, functional.tanh, "tanh", "tanh_"):
    LAYERS[_target] = lambda x: nn.Tanh()
for _target in (torch.sigmoid, torch.sigmoid_, functional.sigmoid, "sigmoid", "sigmoid_"):
    LAYERS[_target] = lambda x: nn.Sigmoid()

ON_SHAPES: dict[Any, Callable[..., list[nn.Module]]] = {
    functional.batch_norm: batch_norm,
    torch.batch_norm: _torch_batch_norm,
    **dict.fromkeys((torch.sum, "sum"), summed),
    **dict.fromkeys((torch.amax, "amax"), largest),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip", "clamp_", "clip_"), clamp),
    **dict.fromkeys((torch.clamp_min, "clamp_min", "clamp_min_"), lambda before, x, min: clamp(before, x, min)),
    functional.layer_norm: layer_norm,
    functional.group_norm: group_norm,
    **dict.fromkeys((torch.clamp_max, "clamp_max", "clamp_max_"), lambda before, x, max: clamp(before, x, None, max)),
}
"""Operations whose layers depend on the shape that they are given: functions of it and of the arguments."""

ADD = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
SUBTRACT = frozenset({operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract"})
MULTIPLY = frozenset({operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"})
DIVIDE = frozenset({operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_", "divide"})
REASONS: dict[Any, str] = {
    functional.local_response_norm: UNRULED[nn.LocalResponseNorm],
    **dict.fromkeys((functional.instance_norm, torch.instance_norm), "no rule for it as a function; nn.InstanceNorm2d has one"),
    **dict.fromkeys((functional.softmax, torch.softmax, "softmax"), SOFTMAX),
    functional.scaled_dot_product_attention: ATTENTION,
}
"""Operations that are known and have no rule, and why."""
MAXIMA: frozenset[Any] = frozenset({torch.maximum, torch.max, "maximum", "max"})
EXTREMES: frozenset[Any] = MAXIMA | frozenset({torch.minimum, torch.min, "minimum", "min"})
NEGATE = frozenset({operator.neg, torch.neg, "neg"})
CONCATENATE = frozenset({torch.cat, torch.concat, torch.concatenate})
RESHAPE = frozenset({torch.reshape, "view", "reshape"})
MEAN = frozenset({torch.mean, "mean"})
ADAPTIVE = frozenset({functional.adaptive_avg_pool2d})
ADAPTIVE_MAX = frozenset({functional.adaptive_max_pool2d})
SIZES = frozenset(
    {
        getattr,
        operator.getitem,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.neg,
        operator.eq,
        operator.ne,
        operator.lt,
        operator.le,
        operator.gt,
        operator.ge,
        torch._assert,
        int,
        len,
        "size",
        "numel",
        "dim",
    }
)
"""Operations that may read the shape of an image, which is known, or check it."""
IN_PLACE = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv})


def in_tuples(value: Any) -> Any:
    """Arguments with every list in them as a tuple, as layers hold sizes."""
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return tuple(in_tuples(one) for one in value)
    return {key: in_tuples(one) for key, one in value.items()} if isinstance(value, dict) else value


def module_layers(path: str, module: nn.Module, before: tuple[int, ...]) -> list[nn.Module]:
    """A leaf of the graph as layers with rules, checked as in `guard.leaves`, with in-place work switched off."""
    if why := next((reason for kind, reason in UNRULED.items() if isinstance(module, kind)), ""):
        raise Uncertifiable(why)
    if type(module) in NORMALISING:
        return standardised(module, before)
    if is_torchvision_normalize(module):
        return normalized(before, None, module.mean, module.std, bool(module.inplace))
    if type(module) is nn.AdaptiveAvgPool2d:
        return adaptive(module.output_size, before)
    list(leaves(module, path))
    if getattr(module, "inplace", False):
        module = copy.copy(module)
        module.inplace = False  # type: ignore[assignment]
    return [] if type(module) is nn.Identity else [module]


def adaptive(size: Any, before: tuple[int, ...]) -> list[nn.Module]:
    """An adaptive average pool: no layer where the size stays, an average pool where the new size divides it."""
    if len(before) != 3:
        raise Uncertifiable(f"expected images of (channel, height, width), found shape {before}")
    wanted = (size, size) if isinstance(size, int) or size is None else tuple(size)
    height, width = (old if new is None else new for old, new in zip(before[1:], wanted, strict=True))
    if (height, width) == before[1:]:
        return []
    if (height, width) != (1, 1) and before[1] % height == 0 and before[2] % width == 0:
        return [nn.AvgPool2d((before[1] // height, before[2] // width))]
    return [nn.AdaptiveAvgPool2d((height, width) if (height, width) != (1, 1) else 1)]


def mean(
    before: tuple[int, ...], x: Any, dim: Any = None, keepdim: bool = False, dtype: None = None, axis: Any = None
) -> list[nn.Module]:
    """The mean over all pixels of each channel, or over other dimensions."""
    dims = axis if dim is None else dim
    found = sorted(d % (len(before) + 1) for d in ([dims] if isinstance(dims, int) else dims or ()))
    if dtype is not None:
        raise Uncertifiable("no rule for a mean in another type")
    if found != list(range(2, len(before) + 1)) or len(before) not in (2, 3):
        return reduced(before, dims, keepdim, True)
    pool = nn.AdaptiveAvgPool2d(1) if len(before) == 3 else nn.AdaptiveAvgPool1d(1)
    return [pool] if keepdim else [pool, nn.Flatten()]


def reshaped(before: tuple[int, ...], after: tuple[int, ...]) -> list[nn.Module]:
    """A reshape that keeps the order."""
    if before == after:
        return []
    if math.prod(after) != math.prod(before):
        raise Uncertifiable(f"no rule for reshaping images of {before} to {after}")
    return [nn.Flatten()] if len(after) == 1 else [Pick(torch.arange(math.prod(before)), after, before)]
