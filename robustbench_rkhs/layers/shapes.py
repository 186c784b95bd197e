"""Layers that reshape, pad, crop or average: norm one."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.borders import divisible
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, fan, rule
from robustbench_rkhs.lipschitz.convolution import image_size
from robustbench_rkhs.nodes.node import UserError


class _Sized(nn.Module):
    """A layer with one positive size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"{type(self).__name__}: expected a size of at least 1, found {size}")
        self.size = size

    def extra_repr(self) -> str:
        return str(self.size)


class SpaceToDepth(_Sized):
    """Space to depth: each block of size x size pixels as channels of one pixel, an isometry. Images are zero-padded at the end."""

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch deep rows columns"]:
        return functional.pixel_unshuffle(divisible(x, self.size), self.size)


class ScaledAveragePool(_Sized):
    r"""Averages of size x size windows, times size: norm one, as each window's weights 1/size have l2 length one.

    .. math:: y_w = \frac1{\mathrm{size}} \sum_{p \in w} x_p

    Windows do not overlap; images are padded with zeros at the end to a multiple of the size.
    """

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel rows columns"]:
        return functional.avg_pool2d(divisible(x, self.size), self.size, divisor_override=self.size)


class PadChannels(_Sized):
    """Zero channels (or features) appended up to `size`: an isometry. Raises UserError where there are more already."""

    def forward(self, x: Float[Tensor, "batch channel *image"]) -> Float[Tensor, "batch channels *image"]:
        if x.shape[1] > self.size:
            raise UserError(f"PadChannels: expected at most {self.size} channels, found an input of shape {tuple(x.shape)}")
        return functional.pad(x, (0, 0) * (x.dim() - 2) + (0, self.size - x.shape[1]))


class FirstFeatures(_Sized):
    """Only the first channels (or features): norm one. Raises UserError where there are fewer."""

    def forward(self, x: Float[Tensor, "batch feature *image"]) -> Float[Tensor, "batch features *image"]:
        if x.shape[1] < self.size:
            raise UserError(f"FirstFeatures: expected at least {self.size} features, found an input of shape {tuple(x.shape)}")
        return x[:, : self.size]


@rule.register
def _(module: SpaceToDepth, shape: tuple[int, ...]) -> Bound:
    channels, height, width = image_size(shape)
    return Bound(1.0, (channels * module.size**2, -(-height // module.size), -(-width // module.size)))


@rule.register
def _(module: ScaledAveragePool, shape: tuple[int, ...]) -> Bound:
    channels, height, width = image_size(shape)
    return Bound(1.0, (channels, -(-height // module.size), -(-width // module.size)))


@rule.register
def _(module: PadChannels, shape: tuple[int, ...]) -> Bound:
    if not shape or shape[0] > module.size:
        raise Uncertifiable(f"expected at most {module.size} channels, found an input of shape {shape}")
    return Bound(1.0, (module.size, *shape[1:]))


@rule.register
def _(module: FirstFeatures, shape: tuple[int, ...]) -> Bound:
    if not shape or shape[0] < module.size:
        raise Uncertifiable(f"expected at least {module.size} features, found an input of shape {shape}")
    return Bound(1.0, (module.size, *shape[1:]))


for _kind in (SpaceToDepth, PadChannels, FirstFeatures, ScaledAveragePool):
    affine.register(_kind, lambda module: True)
for _kind in (SpaceToDepth, PadChannels, FirstFeatures):
    fan.register(_kind, lambda module, inputs, outputs: (1, 1))
fan.register(ScaledAveragePool, lambda module, inputs, outputs: (module.size**2, 1))
