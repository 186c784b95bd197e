"""A copy of a network for the search: convolutions in oneDNN's packed form, in bfloat16 where a processor is made for it."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from robustbench_rkhs.attacks.objective import input_gradient
from robustbench_rkhs.runtime.cost import estimated

WORTH = 1e7
"""Multiply-adds of one image, about, from which packing saves time."""
IMAGES = 2
"""Clean images on which a copy must give the network's logits and gradients."""
AGREE = 1e-4
"""Largest difference of copy and network there in float32, as a share of the largest entry."""
ROUGHLY = 0.02, 0.2
"""Largest difference in bfloat16: of logits, as a share of the least distance of an image's largest and smallest; of an image's
gradient, as a share of its length."""
COLOURS = 4
"""Up to so many input channels a convolution stays as it is in a copy in bfloat16: it sees the pixels, and is cheap."""


class HalfPrecision(nn.Module):
    """A copy whose logits are off by more than the last bits of float32."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inside(x.contiguous(memory_format=torch.channels_last))
        return result


def search_copy(model: nn.Module, x: Float[Tensor, "batch *image"], half: bool = True) -> nn.Module | None:
    """What a search asks instead of the network, None where nothing pays. Where the processor multiplies in bfloat16 (if `half` and
    both agree) a copy in bfloat16, else a packed one; with Intel AMX packing alone costs time (`benchmarks/packed_copy.py`).
    Cost: as for `packed_copy`, of up to two copies."""
    halved = packed_copy(model, x, torch.bfloat16) if half and multiplies_bfloat16() else None
    if halved is not None or packing_costs_time():
        return halved
    return packed_copy(model, x)


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 in hardware: Intel AMX, or AVX-512 BF16 (AMD from Zen 4 on)."""
    return _processor_has("amx_bf16") or _processor_has("avx512_bf16")


def packing_costs_time() -> bool:
    """Whether convolutions in float32 are slower packed than as they are: measured on a processor with Intel AMX."""
    return _processor_has("amx_bf16")


def _processor_has(feature: str) -> bool:
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get(feature))


@torch.no_grad()
def packed_copy(model: nn.Module, x: Float[Tensor, "batch *image"], dtype: torch.dtype = torch.float32) -> nn.Module | None:
    """The packed copy of a network that takes images like `x`; None where there is nothing to pack or the two do not agree.

    `dtype`: bfloat16 for convolutions that take and give float32, multiply in bfloat16 and add up in float32; the result is
    `HalfPrecision`. Biases, other layers, and convolutions of up to `COLOURS` input channels stay in float32.

    Each plain float32 `nn.Conv2d` on a CPU is replaced: its weights are stored once in the blocked form that oneDNN computes in,
    and activations stay channels last. The backward pass of a convolution of stride 1 is a forward pass too, with its kernels
    flipped. Weights are shared with the network, of which nothing changes. Its last bits differ from the network's, so whatever
    is counted is asked of the network itself.
    Cost: two passes with gradients of `IMAGES` images, and a second copy of the convolutions' weights in memory.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() != 4 or not len(x):
        return None
    if not torch.backends.mkldnn.is_available() or estimated(model, tuple(x.shape[1:])) < WORTH:
        return None
    some = x[:IMAGES]
    try:
        found = copy.deepcopy(model, {id(one): one for one in (*model.parameters(), *model.buffers())})
        agrees = _agrees if dtype == torch.float32 else _roughly_agrees
        if not _pack(found, dtype) or not agrees(_slope(found, some), _slope(model, some)):
            return None
    except Exception:  # a model of a user's own that cannot be copied, or an operation that this build of PyTorch lacks
        return None
    return found if dtype == torch.float32 else HalfPrecision(found)


class _PackedConv(nn.Module):
    """A convolution with frozen weights in packed form, which multiplies in `dtype`."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.stride, self.padding, self.dilation = list(conv.stride), _padding(conv), list(conv.dilation)
        self.groups, self.weight, self.bias = conv.groups, conv.weight, conv.bias
        self.packed = _packed(conv.weight.to(dtype), self.padding, self.stride, self.dilation, self.groups)
        flips = conv.groups == 1 and self.stride == self.dilation == [1, 1]
        self.opposite = [size - 1 - pad for size, pad in zip(conv.kernel_size, self.padding, strict=True)]
        """Padding of the backward pass."""
        self.flipped: Any = None
        if flips and min(self.opposite) >= 0:
            kernels = conv.weight.detach().to(dtype).flip(2, 3).transpose(0, 1).contiguous()
            self.flipped = _packed(kernels, self.opposite, self.stride, self.dilation, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _WithGradient.apply(x, self)
            return result
        return self.value(x)

    def value(self, x: Tensor) -> Tensor:
        given = x.to(self.dtype)
        return _convolved(given, self.packed, self.bias, self.padding, self.stride, self.dilation, self.groups).to(x.dtype)

    def gradient(self, shape: torch.Size, upstream: Tensor) -> Tensor:
        """The gradient of the input of this shape."""
        upstream = upstream.contiguous(memory_format=torch.channels_last)
        if self.flipped is not None:
            given = upstream.to(self.dtype)
            return _convolved(given, self.flipped, None, self.opposite, self.stride, self.dilation, 1).to(upstream.dtype)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        result: Tensor = conv2d_input(list(shape), self.weight, upstream, *settings)
        return result


class _WithGradient(torch.autograd.Function):
    """The packed convolution with the gradient of its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: _PackedConv) -> Tensor:
        ctx.conv, ctx.shape = conv, x.shape
        return conv.value(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.conv.gradient(ctx.shape, upstream[0]), None


def _pack(model: nn.Module, dtype: torch.dtype) -> bool:
    """Replace the convolutions that can be packed; whether there was any."""
    found = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _plain(child) and not (dtype == torch.bfloat16 and child.in_channels <= COLOURS):  # type: ignore[operator]
                setattr(parent, name, _PackedConv(child, dtype))  # type: ignore[arg-type]
                found = True
    return found


def _plain(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or module.weight.dtype != torch.float32:
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" not in vars(module) and not any(getattr(module, name) for name in hooks)


def _padding(conv: nn.Conv2d) -> list[int]:
    if isinstance(conv.padding, str):
        raise ValueError("padding by name is left to PyTorch")
    return list(conv.padding)


def _packed(weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int) -> Any:
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    return reorder(weight.detach().to_mkldnn(), padding, stride, dilation, groups, None)


def _convolved(
    x: Tensor, packed: Any, bias: Tensor | None, padding: list[int], stride: list[int], dilation: list[int], groups: int
) -> Tensor:
    convolve: Any = torch.ops.mkldnn._convolution_pointwise.default
    result: Tensor = convolve(x, packed, bias, padding, stride, dilation, groups, "none", [], "")
    return result


def _slope(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of their weighted sum."""
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)
        return logits.detach(), input_gradient((logits * weights).sum(), leaf)


def _agrees(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(bool((a - b).abs().max() <= AGREE * b.abs().max()) and bool(b.abs().max() > 0) for a, b in pairs)


def _roughly_agrees(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    apart, turned = ((a - b).flatten(1) for a, b in zip(one, other, strict=True))
    spread, length = other[0].amax(1) - other[0].amin(1), other[1].flatten(1).norm(dim=1)
    of_logits, of_gradients = ROUGHLY
    alike = bool((apart.abs().amax(1) <= of_logits * spread.amin()).all() and (turned.norm(dim=1) <= of_gradients * length).all())
    return alike and bool((spread > 0).all() and (length > 0).all())
