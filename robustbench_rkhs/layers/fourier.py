"""Convolutions computed per frequency on a torus: any kernel, stride and image size."""

import math
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.borders import checked, divisible
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.lipschitz.bounds import weights


class FourierConv(nn.Module):
    r"""Base of Fourier layers: a convolution whose matrix at each frequency is a function of the kernel's matrix there.

    A stride s folds s x s pixels into channels (an isometry; sizes that s does not divide are padded with zeros) and acts with
    stride one on ceil(n / s) pixels; a kernel of k taps then has max(1, k // s) per side, as published. `circular`: the torus is
    the folded image itself. `zeros`: the torus is larger by the taps less one, the image is padded with zeros, and the result is
    cropped to the image: cropping and padding have norm one, so bounds on the torus hold for the image.
    Raises UserError for sizes below one and unknown padding.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding_mode: str) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size, "stride": stride}
        checked(type(self).__name__, padding_mode, **sizes)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding_mode = kernel_size, stride, padding_mode
        self.folded_channels, self.taps = in_channels * stride**2, max(1, kernel_size // stride)

    def folded(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch folded rows columns"]:
        """Blocks of stride x stride pixels as channels."""
        return x if self.stride == 1 else functional.pixel_unshuffle(divisible(x, self.stride), self.stride)

    def places(self, height: int, width: int) -> tuple[int, int]:
        """Size of the output."""
        return -(-height // self.stride), -(-width // self.stride)

    def torus(self, height: int, width: int) -> tuple[int, int]:
        """Size of the torus for an input of this size."""
        extra = self.taps - 1 if self.padding_mode == "zeros" else 0
        rows, columns = self.places(height, width)
        return rows + extra, columns + extra

    def exact(self, *parameters: Tensor) -> list[Tensor]:
        """The parameters in the precision of the evaluation: float64 in eval mode (where the device supports it), else float32.

        Training rounds at 1e-7, which is enough for gradients, but not for certificates and attacks.
        """
        double = not self.training and self.bias.device.type != "mps"
        return [p.double() if double or p.dtype == torch.float64 else p.float() for p in parameters]

    def checked(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of an input, after checks of it and all parameters. Raises Uncertifiable otherwise."""
        for name, parameter in self.named_parameters():
            weights(parameter, name)
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise Uncertifiable(f"expected images of {self.in_channels} channels, found an input of shape {shape}")
        return shape[1], shape[2]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding_mode={self.padding_mode!r}"
        )


def spectrum(
    kernel: Float[Tensor, "outputs inputs height width"], torus: tuple[int, int]
) -> Complex[Tensor, "half outputs inputs"]:
    r"""The kernel's matrix at each frequency of the torus, with the tap (height // 2, width // 2) at the origin.

    .. math:: \hat W_{ab} = \sum_{st} W_{st}\, e^{-2 \pi i (a (s - c) / m + b (t - c) / n)}, \qquad b \le n / 2

    The other frequencies are conjugates. A torus smaller than the kernel wraps it. Cost: a product of (frequencies x taps) and
    (taps x entries), in real arithmetic; no transform of the padded kernel.
    """
    outputs, inputs, height, width = kernel.shape
    rows, columns = torus
    row, column = _angles(rows, height, rows), _angles(columns, width, columns // 2 + 1)
    angles = (row[:, None, :, None] + column[None, :, None, :]).reshape(-1, height * width).to(kernel.device)
    flat = kernel.permute(2, 3, 0, 1).reshape(height * width, -1)
    cosine, sine = (wave(angles).to(kernel.dtype) @ flat for wave in (torch.cos, torch.sin))
    return torch.complex(cosine, -sine).view(-1, outputs, inputs)


def _angles(points: int, taps: int, frequencies: int) -> Float[Tensor, "frequencies taps"]:
    """2 pi k (t - taps // 2) / points in float64, reduced in integers first."""
    turns = torch.outer(torch.arange(frequencies), torch.arange(taps) - taps // 2) % points
    return 2 * math.pi / points * turns.double()


def multiplied(
    x: Float[Tensor, "batch inputs height width"],
    matrices: Complex[Tensor, "half outputs inputs"],
    torus: tuple[int, int],
) -> Float[Tensor, "batch outputs rows columns"]:
    r"""Images padded to the torus, with each frequency multiplied by its matrix: y = F^-1 M F x.

    Gradients of any order. Cost: two transforms; the gradient costs the same again and two products, as the adjoint of a real
    map is real: F^-1 M* F, without the full complex transform of automatic differentiation.
    """
    extra = torus[0] - x.shape[-2], torus[1] - x.shape[-1]
    if extra != (0, 0):
        x = functional.pad(x, (0, extra[1], 0, extra[0]))
    y: Tensor = _Multiply.apply(x, matrices)
    return y


class _Multiply(torch.autograd.Function):
    """Real images and a matrix for each frequency of the half plane, which determines the other half."""

    @staticmethod
    def forward(context: Any, x: Tensor, matrices: Tensor) -> Tensor:
        waves = _there(x)
        context.save_for_backward(x, matrices, waves if context.needs_input_grad[1] else waves[:0])
        return _back(matrices @ waves, x.shape[-2:])

    @staticmethod
    def backward(context: Any, *slopes: Any) -> Any:
        x, matrices, waves = context.saved_tensors
        slope, size = slopes[0], x.shape[-2:]
        if torch.is_grad_enabled():  # for second derivatives: in differentiable steps
            along_x = _Multiply.apply(slope, matrices.mH.resolve_conj()) if context.needs_input_grad[0] else None
            along_m = _products(_there(slope), _there(x), size) if context.needs_input_grad[1] else None
            return along_x, along_m
        there = _there(slope)
        along_x = _back(matrices.mH @ there, size) if context.needs_input_grad[0] else None
        return along_x, _products(there, waves, size) if context.needs_input_grad[1] else None


def _products(slopes: Tensor, waves: Tensor, size: torch.Size) -> Tensor:
    """Gradient of the matrices: outer products per frequency; all but the columns 0 and n / 2 count twice."""
    rows, columns = size
    count = torch.full((columns // 2 + 1,), 2.0 / (rows * columns), dtype=waves.real.dtype, device=waves.device)
    count[0] /= 2
    if columns % 2 == 0:
        count[-1] /= 2
    return (slopes @ waves.mH) * count.repeat(rows)[:, None, None]


def _there(x: Tensor) -> Tensor:
    """Images to (frequency, channel, image)."""
    result: Tensor = torch.fft.rfft2(x).flatten(2).permute(2, 1, 0).contiguous()
    return result


def _back(x: Tensor, size: torch.Size) -> Tensor:
    """(frequency, channel, image) to images."""
    result: Tensor = torch.fft.irfft2(x.permute(2, 1, 0).unflatten(-1, (size[0], size[1] // 2 + 1)), s=size)
    return result


def delta(outputs: int, inputs: int, taps: int, matrix: Tensor) -> Tensor:
    """A kernel that is zero except for the matrix at its centre: its matrix at every frequency."""
    kernel = torch.zeros(outputs, inputs, taps, taps)
    kernel[..., taps // 2, taps // 2] = matrix
    return kernel


def torus_kernel(
    matrices: Complex[Tensor, "half outputs inputs"], torus: tuple[int, int]
) -> tuple[Float[Tensor, "outputs inputs rows columns"], Float[Tensor, "outputs inputs"]]:
    r"""The circular convolution on the torus that multiplies each frequency by its matrix, and a bound on its entries.

    .. math:: K_t = \frac1{mn} \sum_\theta \mathrm{Re}\, M_\theta e^{i \langle \theta, t \rangle}, \qquad
              |K_t| \le E = \frac1{mn} \sum_\theta |\mathrm{Re}\, M_\theta| + |\mathrm{Im}\, M_\theta|

    over all m n frequencies; those past the half plane are conjugates. The sum has 2 m n terms, with cosines known to 20 units
    of roundoff: each entry errs by at most (2 m n + 25) units of E. Cost: a product of (places x frequencies) and entries.
    """
    rows, columns = torus
    half, places = columns // 2 + 1, rows * columns
    down = torch.outer(torch.arange(rows), torch.arange(rows))[:, None, :, None] * columns  # place, frequency
    across = torch.outer(torch.arange(columns), torch.arange(half))[None, :, None, :] * rows
    angles = 2 * math.pi / places * ((down + across) % places).reshape(places, rows * half).double()
    twice = torch.full((half,), 2.0, dtype=torch.float64)
    twice[0] = 1.0
    if columns % 2 == 0:
        twice[-1] = 1.0
    count = (twice.repeat(rows) / places).to(matrices.real)[:, None]
    real, imaginary = (part.flatten(1) * count for part in (matrices.resolve_conj().real, matrices.resolve_conj().imag))
    kernel = angles.cos().to(real) @ real - angles.sin().to(real) @ imaginary
    entries = real.abs().sum(0) + imaginary.abs().sum(0)
    outputs, inputs = matrices.shape[1:]
    return kernel.T.reshape(outputs, inputs, rows, columns), entries.view(outputs, inputs)
