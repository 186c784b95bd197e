"""Square attack: image layout, window-size schedule and perturbation patterns."""

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The queries, of 10,000, after which the window's share of the picture is halved, as published."""


class Picture(NamedTuple):
    """Image layout: channels of cells in rows; a cell is a pixel, or padding after the last pixel."""

    channels: int
    height: int
    width: int
    pixels: int
    """Numbers in an image, over all channels."""
    shape: tuple[int, ...]
    """Cells of one image."""

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> "Picture":
        """The layout of (C, H, W) and (H, W) as they are, of anything else as one channel on the smallest near-square that fits."""
        pixels = math.prod(shape)
        if len(shape) in (2, 3):
            return cls(math.prod(shape[:-2]), shape[-2], shape[-1], pixels, tuple(shape))
        width = math.isqrt(max(pixels - 1, 0)) + 1
        return cls(1, -(-pixels // width), width, pixels, tuple(shape))

    @property
    def padding(self) -> int:
        """Number of padding cells, at the end of the one channel."""
        return self.channels * self.height * self.width - self.pixels

    def cells(self, images: Float[Tensor, "batch *image"]) -> Float[Tensor, "batch cells"]:
        """The images in this layout, with 0 as padding."""
        flat = images.flatten(1)
        return torch.nn.functional.pad(flat, (0, self.padding)) if self.padding else flat

    def images(self, cells: Float[Tensor, "batch cells"]) -> Float[Tensor, "batch *image"]:
        """Back to images, without the padding."""
        return (cells[:, : self.pixels] if self.padding else cells).reshape(-1, *self.shape)


def share(start: float, query: int, queries: int) -> float:
    """Share of the picture that the window covers in this query; query 0 is the start.

    >>> [share(0.8, query, 10_000) for query in (1, 10, 11, 51, 9_999)]
    [0.8, 0.8, 0.4, 0.2, 0.0015625]
    """
    at = int(query / queries * 10_000)
    return float(start / 2 ** sum(at > halving for halving in HALVINGS))


def sides(start: float, query: int, queries: int, picture: Picture, smooth: bool) -> tuple[int, int]:
    """Height and width of a window: a square, or the share of a narrow picture; `smooth` (l2): odd and at least 3 in pictures."""
    area = share(start, query, queries) * picture.height * picture.width
    side = max(round(math.sqrt(area)), 1)
    if smooth and len(picture.shape) in (2, 3):
        side = max(side + (side % 2 == 0), 3)
    height, width = min(side, picture.height), min(side, picture.width)
    if side > picture.height:
        width = min(max(round(area / height), 1), picture.width)
    elif side > picture.width:
        height = min(max(round(area / width), 1), picture.height)
    return height, width


@cache
def pyramid(height: int, width: int) -> Float[Tensor, "height width"]:
    r"""eta: :math:`\sum_{k=0}^{M} (n + 1 - k)^{-2}`, n half the longer side, M as many as the cell lies rings inside."""
    n = max(height, width) // 2
    rows, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    steps = (1 / torch.arange(n + 1, 0, -1, dtype=torch.float64).square()).cumsum(0)
    return steps[n - torch.maximum(rows[:, None], columns[None])]


@cache
def halves(height: int, width: int) -> Float[Tensor, "2 height width"]:
    """A pyramid on one half of the window and minus one on the other: halves above each other, then beside each other. Length 1."""
    top, left = height // 2, width // 2
    stacked = torch.cat([pyramid(top, width), -pyramid(height - top, width)]) if top else pyramid(height, width)
    beside = torch.cat([pyramid(height, left), -pyramid(height, width - left)], 1) if left else pyramid(height, width)
    return torch.stack([stacked / stacked.norm(), beside / beside.norm()])


@cache
def tiles(height: int, width: int) -> tuple[Int[Tensor, " cells"], Float[Tensor, "2 cells"], int]:
    """A grid of five by five tiles (fewer in a smaller picture): the tile of each cell, the patterns, the number of tiles."""
    rows, columns = _cuts(height), _cuts(width)
    number, pattern = torch.zeros(height, width, dtype=torch.int64), torch.zeros(2, height, width, dtype=torch.float64)
    for i, (above, below) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            number[above:below, left:right] = i * len(columns) + j
            pattern[:, above:below, left:right] = halves(below - above, right - left)
    return number.flatten(), pattern.flatten(1), len(rows) * len(columns)


def _cuts(side: int, parts: int = 5) -> list[tuple[int, int]]:
    parts = min(parts, side)
    return [(part * side // parts, (part + 1) * side // parts) for part in range(parts)]


@lru_cache(maxsize=64)
def window(
    height: int, width: int, picture: Picture, dtype: torch.dtype, device: torch.device
) -> tuple[Int[Tensor, " cells"], Float[Tensor, "4 window"]]:
    """Offsets of a window's cells from its first, in every channel; the channel patterns: stacked or side by side, either sign."""
    channels = torch.arange(picture.channels)[:, None, None] * (picture.height * picture.width)
    offsets = (channels + torch.arange(height)[:, None] * picture.width + torch.arange(width)).flatten()
    pattern = halves(height, width).flatten(1)
    return offsets.to(device), torch.cat([pattern, -pattern]).to(device, dtype)
