"""Convolutions that keep sizes (or divide them, rounded up): their padding, and the proof of their norm."""

from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.lowered import hold
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.lipschitz.bounds import weights
from robustbench_rkhs.lipschitz.convolution import Axis, image_size, operator_norm
from robustbench_rkhs.nodes.node import UserError

Padding = Literal["circular", "zeros"]
"""`zeros`: zeros beyond the border. `circular`: the other end of the image, which is first made divisible by the stride
with zeros at its end."""


def ends(kernel: int) -> tuple[int, int]:
    """Padding before and after: kernel // 2 and kernel - 1 in total, so that n pixels become ceil(n / stride)."""
    return kernel // 2, (kernel - 1) // 2


def checked(name: str, padding_mode: str, **sizes: int) -> None:
    """Raises UserError where a size is below one or the padding is unknown."""
    if any(size < 1 for size in sizes.values()):
        raise UserError(f"{name}: expected sizes of at least 1, found {', '.join(f'{key}={sizes[key]}' for key in sizes)}")
    if padding_mode not in ("circular", "zeros"):
        raise UserError(f"{name}: expected padding_mode 'circular' or 'zeros', found {padding_mode!r}")


def divisible(x: Float[Tensor, "batch channel height width"], by: int) -> Float[Tensor, "batch channel rows columns"]:
    """The image padded with zeros at its end, up to the next multiples."""
    height, width = x.shape[-2:]
    return functional.pad(x, (0, -width % by, 0, -height % by)) if height % by or width % by else x


def convolve(
    x: Float[Tensor, "batch inputs height width"],
    weight: Float[Tensor, "outputs inputs kernel kernel"],
    bias: Float[Tensor, " outputs"] | None = None,
    stride: int = 1,
    padding_mode: Padding = "zeros",
    padding: tuple[int, int] | None = None,
) -> Float[Tensor, "batch outputs rows columns"]:
    """The convolution with output sizes ceil(n / stride). Raises UserError where circular padding would wrap more than once."""
    before, after = ends(weight.shape[-1]) if padding is None else padding
    if padding_mode == "circular":
        x = divisible(x, stride)
        if max(before, after) > min(x.shape[-2:]):
            kernel, size = weight.shape[-1], tuple(x.shape[-2:])
            raise UserError(f"a circular convolution of kernel {kernel} wraps more than once around an image of {size}")
        if before or after:
            x = functional.pad(x, (before, after, before, after), mode="circular")
    elif before == after:
        return functional.conv2d(x, weight, bias, stride, before)
    else:
        x = functional.pad(x, (before, after, before, after))
    return functional.conv2d(x, weight, bias, stride)


def adjoint(
    h: Float[Tensor, "batch outputs height width"],
    weight: Float[Tensor, "outputs inputs kernel kernel"],
    padding_mode: Padding = "zeros",
) -> Float[Tensor, "batch inputs height width"]:
    """The transpose of `convolve` at stride one: the mirrored kernel, with the padding's two ends exchanged."""
    before, after = ends(weight.shape[-1])
    return convolve(h, weight.transpose(0, 1).flip(2, 3), None, 1, padding_mode, (after, before))


def norm_and_shape(
    weight: Float64[Tensor, "outputs inputs kernel kernel"], shape: tuple[int, ...], stride: int, padding_mode: Padding
) -> tuple[float, tuple[int, int, int]]:
    """Proven norm of `convolve` on images of `shape`, and the output shape. Raises Uncertifiable for unsuitable shapes."""
    outputs, inputs, kernel, _ = weight.shape
    channels, *sizes = image_size(shape)
    if channels != inputs:
        raise Uncertifiable(f"expected {inputs} channels, found an input of shape {shape}")
    before, after = ends(kernel)
    circular = padding_mode == "circular"
    if circular:  # zeros at the end are an isometry
        sizes = [-(-size // stride) * stride for size in sizes]
        if before > min(sizes):
            raise Uncertifiable(f"its kernel of {kernel} wraps more than once around an image of {tuple(sizes)}")
    row, column = (Axis(size, kernel, stride, 1, before, after, circular) for size in sizes)
    return operator_norm(weight[None], (row, column)), (outputs, row.outputs, column.outputs)


def entries(weight: Float[Tensor, "outputs inputs kernel kernel"], padding_mode: Padding) -> tuple[int, int]:
    """Most nonzeros per row and column of the convolution's matrix; with circular padding a pixel occurs three times per axis."""
    outputs, inputs, *taps = weight.shape
    copies = 9 if padding_mode == "circular" else 1
    return taps[0] * taps[1] * inputs, copies * taps[0] * taps[1] * outputs


def delta_orthogonal(outputs: int, inputs: int, kernel: int, stride: int = 1) -> Float[Tensor, "outputs inputs kernel kernel"]:
    """A kernel whose strided convolution is a (semi-)orthogonal matrix on each block of stride x stride pixels."""
    block = min(kernel, stride)
    at = min(kernel // 2, kernel - block)
    weight = torch.zeros(outputs, inputs, kernel, kernel)
    matrix = nn.init.orthogonal_(torch.empty(outputs, inputs * block**2))
    weight[:, :, at : at + block, at : at + block] = matrix.view(outputs, inputs, block, block)
    return weight


def correlation(kernels: Float[Tensor, "count channel height width"]) -> Float[Tensor, "count count"]:
    """sum_d |sum_{c,t} K_i[c, t] K_j[c, t + d]|: the overlap of each pair of kernels, over all shifts."""
    padding = (kernels.shape[2] - 1, kernels.shape[3] - 1)
    return functional.conv2d(kernels, kernels, padding=padding).abs().sum((2, 3))


def precise(weight: Float[Tensor, "*size"]) -> Float[Tensor, "*size"]:
    """In float64 (which is certified) where the device supports it."""
    return weight.to(torch.float32 if weight.device.type == "mps" else torch.float64)


def unit_peak(weight: Float[Tensor, "*size"]) -> tuple[Float[Tensor, "*size"], Float[Tensor, ""]]:
    """The weight over its largest entry, and that entry (one for zeros): no square under- or overflows."""
    peak = weight.detach().abs().amax()
    peak = torch.where(peak > 0, peak, 1)
    return weight / peak, peak


def inverse_root(values: Float[Tensor, " count"], keep: Tensor) -> Float[Tensor, " count"]:
    """1 / sqrt where kept, else zero; with finite gradients."""
    return torch.where(keep, values, 1).rsqrt() * keep


def finite(module: nn.Module) -> None:
    """Raises Uncertifiable where a parameter is not finite."""
    for name, parameter in module.named_parameters():
        weights(parameter, name)


class Convolution(nn.Module):
    """`convolve` by a given kernel: the plain operation. It has no rule; certificates use the layer that it comes from."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Float[Tensor, "outputs inputs kernel kernel"], bias: Tensor, stride: int, padding_mode: Padding
    ) -> None:
        super().__init__()
        hold(self, weight=weight.to(bias.dtype), bias=bias)
        self.stride, self.padding_mode = stride, padding_mode

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        return convolve(x, self.weight, self.bias, self.stride, self.padding_mode)
