"""Crop, flip and colour jitter: functions of a batch and a generator."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_rkhs.runtime.hashed_rng import hashed_uniforms

Padding = Literal["zeros", "reflect"]
"""Padding of shifted images: black, or mirrored at the edge."""
Images = Float[Tensor, "batch channel height width"]
GREY = 0.2989, 0.587, 0.114
"""Weights of red, green and blue in the perceived brightness."""


def augment(
    x: Images, crop: int, flip: bool, generator: torch.Generator, padding: Padding = "zeros", jitter: bool = False
) -> Images:
    """Random mirror images, shifts of up to `crop` pixels and colours, per image.

    Random numbers come from a CPU generator, so that they are the same on every device.
    """
    if flip:
        x = mirrored(x, torch.rand(len(x), generator=generator).to(x.device) < 0.5)
    if crop:
        x = shifted(x, crop, torch.randint(0, 2 * crop + 1, (2, len(x)), generator=generator).to(x.device), padding)
    return jittered(x, generator) if jitter else x


def augment_on_device(
    x: Images, crop: int, flip: bool, keys: Int[Tensor, " batch"], seed: int, padding: Padding = "zeros", jitter: bool = False
) -> Images:
    """The same changes, drawn on the images' device by hashes of (seed, key), without waits for the host.

    Random numbers differ from those of `augment`; colours change in one fixed order.
    """
    draws = hashed_uniforms(keys, seed, 7)
    if flip:
        x = mirrored(x, draws[:, 0] < 0.5)
    if crop:
        x = shifted(x, crop, (draws[:, 1:3] * (2 * crop + 1)).long().T, padding)
    return recolored(x, draws[:, 3:].T, range(len(CHANGES))) if jitter else x


def mirrored(x: Images, which: Bool[Tensor, " batch"]) -> Images:
    """The images, mirrored where chosen."""
    return torch.where(which[:, None, None, None], x.flip(3), x)


def shifted(x: Images, crop: int, shift: Int[Tensor, "2 batch"], padding: Padding) -> Images:
    """Each image cropped from its padded version, at an offset of `shift` rows and columns."""
    height, width = x.shape[2:]
    padded = functional.pad(x, (crop,) * 4, mode="constant" if padding == "zeros" else "reflect")
    rows = shift[0][:, None] + torch.arange(height, device=x.device)
    columns = shift[1][:, None] + torch.arange(width, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def jittered(x: Images, generator: torch.Generator) -> Images:
    r"""Random brightness, contrast, saturation and hue per image; stays in [0, 1].

    Brightness times U(0.9, 1.1), contrast U(0.5, 2), saturation U(0.3, 2), hue turned by U(-0.02, 0.02) of a full circle, one
    after the other in an order drawn for the batch. Grey images have neither saturation nor hue.
    Source of the amounts: Wang & Manchester, ICML 2023.
    """
    amounts = torch.rand(len(CHANGES), len(x), generator=generator)
    return recolored(x, amounts, torch.randperm(len(CHANGES), generator=generator).tolist())


def recolored(x: Images, amounts: Float[Tensor, "4 batch"], order: Iterable[int]) -> Images:
    """The four changes of `jittered` in this order, by amounts in [0, 1]."""
    for position in order:
        change, low, high = CHANGES[position]
        if x.shape[1] == 3 or change in (brightness, contrast):
            x = change(x, (low + (high - low) * amounts[position]).to(x)[:, None, None, None])
    return x


def grey(x: Images) -> Float[Tensor, "batch 1 height width"]:
    """The perceived brightness."""
    return (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True) if x.shape[1] == 3 else x


def brightness(x: Images, factor: Float[Tensor, "batch 1 1 1"]) -> Images:
    """The image mixed with black (factor 1: unchanged)."""
    return (factor * x).clamp(0, 1)


def contrast(x: Images, factor: Float[Tensor, "batch 1 1 1"]) -> Images:
    """The image mixed with its mean grey."""
    mean = grey(x).mean((1, 2, 3), keepdim=True)
    return (mean + factor * (x - mean)).clamp(0, 1)


def saturation(x: Images, factor: Float[Tensor, "batch 1 1 1"]) -> Images:
    """The image mixed with its grey picture."""
    picture = grey(x)
    return (picture + factor * (x - picture)).clamp(0, 1)


def hue(x: Images, turn: Float[Tensor, "batch 1 1 1"]) -> Images:
    """Hue rotated by a share of the circle; each pixel's largest and smallest channel values stay."""
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    spread = torch.where(high > low, high - low, 1)
    sixth = torch.where(
        high == red, (green - blue) / spread, torch.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread)
    )
    place = (sixth + 6 * turn + x.new_tensor((5.0, 3.0, 1.0))[:, None, None]) % 6
    return (high - (high - low) * torch.minimum(place, 4 - place).clamp(0, 1)).clamp(0, 1)


CHANGES = [(brightness, 0.9, 1.1), (contrast, 0.5, 2.0), (saturation, 0.3, 2.0), (hue, -0.02, 0.02)]
"""The changes of `jittered`, with the range of each amount."""
