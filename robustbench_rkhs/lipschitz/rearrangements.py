"""Layers that rearrange values or pad them with constants: their Lipschitz constant is at most 1."""

from torch import nn

from robustbench_rkhs.lipschitz.bounds import Bound, Uncertifiable, affine, rule
from robustbench_rkhs.lipschitz.convolution import image_size
from robustbench_rkhs.lipschitz.rounding import fan


@rule.register(nn.ConstantPad2d)
@rule.register(nn.ZeroPad2d)
def _(module: nn.ConstantPad2d, shape: tuple[int, ...]) -> Bound:
    """Constant padding; a negative width crops the image."""
    channels, height, width = image_size(shape)
    left, right, top, bottom = module.padding
    found = (channels, height + top + bottom, width + left + right)
    if min(found) < 1:
        raise Uncertifiable(f"nothing is left of an input of shape {shape}")
    return Bound(1.0, found)


@rule.register
def _(module: nn.PixelUnshuffle, shape: tuple[int, ...]) -> Bound:
    channels, height, width = image_size(shape)
    factor = module.downscale_factor
    if height % factor or width % factor:
        raise Uncertifiable(f"expected sides that {factor} divides, found an input of shape {shape}")
    return Bound(1.0, (channels * factor**2, height // factor, width // factor))


@rule.register
def _(module: nn.PixelShuffle, shape: tuple[int, ...]) -> Bound:
    channels, height, width = image_size(shape)
    factor = module.upscale_factor
    if channels % factor**2:
        raise Uncertifiable(f"expected channels that {factor**2} divides, found an input of shape {shape}")
    return Bound(1.0, (channels // factor**2, height * factor, width * factor))


for _kind in (nn.ConstantPad2d, nn.ZeroPad2d, nn.PixelUnshuffle, nn.PixelShuffle):
    affine.register(_kind, lambda module: True)
    fan.register(_kind, lambda module, inputs, outputs: (1, 1))
