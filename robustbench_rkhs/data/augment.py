"""Crop and flip: functions of a batch and a generator."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def augment(
    x: Float[Tensor, "batch channel height width"], crop: int, flip: bool, generator: torch.Generator
) -> Float[Tensor, "batch channel height width"]:
    """Random shifts of up to `crop` pixels (zeros come in) and random mirror images, drawn an image at a time.

    Draws come from a CPU generator, so that they are the same on every device.
    """
    if flip:
        mirrored = torch.rand(len(x), generator=generator).to(x.device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    if crop:
        height, width = x.shape[2:]
        shift = torch.randint(0, 2 * crop + 1, (2, len(x)), generator=generator).to(x.device)
        padded = functional.pad(x, (crop,) * 4)
        rows = shift[0][:, None] + torch.arange(height, device=x.device)
        columns = shift[1][:, None] + torch.arange(width, device=x.device)
        image = torch.arange(len(x), device=x.device)[:, None, None]
        x = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return x
