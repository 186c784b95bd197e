"""Small deformations of images: random displacement fields, bilinear interpolation, and its tangents."""

import math

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.nodes.node import Node, Real, UserError
from robustbench_rkhs.runtime.counter_rng import draws

STEEPEST = 0.5
"""Largest row sum |d tau/d row| + |d tau/d column| of an elastic field: below 1, so x -> x + tau(x) is invertible."""


class Deformations(Node):
    r"""Random small diffeomorphisms: an elastic field, then an affine map about the image's centre.

    .. math:: u + \tau(u) = c + t + A\,(u + e(u) - c), \qquad A = s\, R(\theta)\, S(\kappa), \qquad
              \max_u \lVert e(u) \rVert_2 \le a, \quad \lVert \nabla e \rVert_\infty \le \tfrac12

    theta, log s, kappa and t are uniform within their limits; e is Gaussian-filtered white noise, scaled to the amplitude a or,
    where that would fold the image, to the largest slope 1/2. det A > 0, so the map is invertible with positive Jacobian.
    Distances in pixels. Source of the use: Bietti et al., ICML 2019 (there with Infinite MNIST's deformations); elastic fields
    as in Simard et al., ICDAR 2003.
    """

    degrees: Real = Field(10.0, ge=0, le=180)
    """Largest rotation in either direction."""
    scale: Real = Field(0.1, ge=0)
    """Largest magnification s - 1, and the same for shrinking: s in [1/(1 + scale), 1 + scale]."""
    shear: Real = Field(0.1, ge=0)
    """Largest horizontal shear: columns per row."""
    translate: Real = Field(0.5, ge=0)
    """Largest shift along either axis, in pixels."""
    amplitude: Real = Field(1.0, ge=0)
    """Largest elastic displacement, in pixels."""
    smoothness: Real = Field(2.0, gt=0)
    """Standard deviation of the Gaussian filter, in pixels."""
    count: int = Field(32, ge=1)
    """Deformations per image."""

    def __call__(
        self, keys: Int[Tensor, " batch"], seed: int, shape: tuple[int, ...], draw: int = 0
    ) -> Float[Tensor, "batch 2 height width"]:
        """`fields` with these settings."""
        settings = self.model_dump(exclude={"count"})
        return fields(keys, seed, shape, draw, **settings)


def fields(
    keys: Int[Tensor, " batch"],
    seed: int,
    shape: tuple[int, ...],
    draw: int = 0,
    *,
    degrees: float = 10.0,
    scale: float = 0.1,
    shear: float = 0.1,
    translate: float = 0.5,
    amplitude: float = 1.0,
    smoothness: float = 2.0,
) -> Float[Tensor, "batch 2 height width"]:
    """Displacements tau in pixels, (down, right), one field per image of `shape`; float32 on the CPU, seeded by (seed, key, draw).

    The deformed image at u is the image at u + tau(u). The limits are explained in `Deformations`. Raises UserError where the
    images are not (channel, height, width).
    """
    _, height, width = image_shape(shape)
    noise = draws(keys, seed, torch.empty(len(keys), 5 + 2 * height * width), draw).double()
    elastic = elastic_fields(noise[:, 5:].unflatten(1, (2, height, width)), amplitude, smoothness)
    uniform = torch.erf(noise[:, :5] / math.sqrt(2))  # in [-1, 1]
    angle, slope = uniform[:, 0] * math.radians(degrees), uniform[:, 2] * shear
    factor = torch.exp(uniform[:, 1] * math.log1p(scale))
    cosine, sine = angle.cos() * factor, angle.sin() * factor
    matrix = torch.stack([cosine - sine * slope, -sine, sine + cosine * slope, cosine], 1).unflatten(1, (2, 2))
    return affine_fields(matrix, uniform[:, 3:] * translate, (height, width), elastic).float()


def affine_fields(
    matrix: Float[Tensor, "batch 2 2"],
    shift: Float[Tensor, "batch 2"],
    size: tuple[int, int],
    first: Float[Tensor, "batch 2 height width"] | None = None,
) -> Float[Tensor, "batch 2 height width"]:
    """Displacements of u -> c + shift + A (u + first(u) - c); coordinates (row, column), c the image's centre."""
    start = _lattice(size, matrix) - torch.tensor([(size[0] - 1) / 2, (size[1] - 1) / 2]).to(matrix)[:, None, None]
    moved = start if first is None else start + first
    placed = matrix @ moved.expand(len(matrix), -1, -1, -1).flatten(2)
    result: Tensor = placed.unflatten(2, size) + shift[:, :, None, None] - start
    return result


def elastic_fields(
    noise: Float[Tensor, "batch 2 height width"], amplitude: float, smoothness: float
) -> Float[Tensor, "batch 2 height width"]:
    """Smoothed noise, scaled so that its longest vector is `amplitude` pixels, or shorter to limit the slope."""
    height, width = noise.shape[2:]
    smooth = _gaussian(height, smoothness).to(noise) @ noise @ _gaussian(width, smoothness).to(noise).T
    longest = smooth.norm(dim=1).flatten(1).amax(1)
    steepest = steepness(smooth)
    tiny = torch.finfo(noise.dtype).tiny
    factor = torch.minimum(amplitude / longest.clamp_min(tiny), STEEPEST / steepest.clamp_min(tiny))
    return smooth * (factor * (1 - 1e-6))[:, None, None, None]  # slightly inside, so that float32 stays inside


def steepness(field: Float[Tensor, "batch 2 height width"]) -> Float[Tensor, " batch"]:
    r"""max over cells and components of :math:`|\partial_r \tau| + |\partial_c \tau|`, for the bilinear interpolant.

    Inside a cell each derivative lies between the differences along its two edges, so this bounds ||grad tau||_inf everywhere.
    """
    down, right = field.diff(dim=2).abs(), field.diff(dim=3).abs()
    if field.shape[3] > 1:
        down = torch.maximum(down[..., :-1], down[..., 1:])
    if field.shape[2] > 1:
        right = torch.maximum(right[:, :, :-1], right[:, :, 1:])
    if field.shape[2] > 1 and field.shape[3] > 1:
        return (down + right).flatten(1).amax(1)
    both = torch.cat([down.flatten(1), right.flatten(1)], 1)
    return both.amax(1) if both.shape[1] else both.new_zeros(len(both))


def deform(
    images: Float[Tensor, "batch channel height width"], fields: Float[Tensor, "batch 2 height width"]
) -> Float[Tensor, "batch channel height width"]:
    """The images at u + tau(u), interpolated bilinearly; edge pixels are repeated beyond the border.

    Each value lies exactly between those of its four neighbours: images in [0, 1] stay there. A zero field gives the image
    itself. Differentiable in both arguments.
    """
    height, width = images.shape[2:]
    place = _lattice((height, width), fields) + fields
    row, column = place[:, 0].clamp(0, height - 1), place[:, 1].clamp(0, width - 1)
    top, left = row.detach().floor().long(), column.detach().floor().long()
    bottom, after = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, right = (row - top)[:, None].to(images.dtype), (column - left)[:, None].to(images.dtype)
    flat = images.flatten(2)

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        index = (rows * width + columns).flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return flat.gather(2, index).view_as(images)

    upper = torch.lerp(at(top, left), at(top, after), right)
    lower = torch.lerp(at(bottom, left), at(bottom, after), right)
    return torch.lerp(upper, lower, down)


def tangents(
    images: Float[Tensor, "batch channel height width"], fields: Float[Tensor, "batch 2 height width"]
) -> Float[Tensor, "batch channel height width"]:
    r"""d/dt deform(x, t tau) at t = 0: the image's gradient times the field, linear in both.

    .. math:: \lim_{t \to 0} \frac{\mathrm{deform}(x, t\tau) - \mathrm{deform}(x, -t\tau)}{2 t}

    Bilinear interpolation has a kink at the pixels; this is the mean of both one-sided derivatives: central differences, half
    of the one inner difference at the border.
    """
    down = torch.cat([images[:, :, 1:], images[:, :, -1:]], 2) - torch.cat([images[:, :, :1], images[:, :, :-1]], 2)
    right = torch.cat([images[..., 1:], images[..., -1:]], 3) - torch.cat([images[..., :1], images[..., :-1]], 3)
    return (down * fields[:, :1] + right * fields[:, 1:]) / 2


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channel, height and width. Raises UserError for any other shape."""
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"deformations need images of (channel, height, width), found inputs of shape {tuple(shape)}")
    return shape[0], shape[1], shape[2]


def _lattice(size: tuple[int, int], like: Tensor) -> Float[Tensor, "2 height width"]:
    """Row and column of every pixel."""
    rows, columns = (torch.arange(side, dtype=like.dtype, device=like.device) for side in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def _gaussian(side: int, deviation: float) -> Float[Tensor, "side side"]:
    """Filter matrix along one axis; zeros beyond the border."""
    place = torch.arange(side, dtype=torch.float64)
    return torch.exp(-((place[:, None] - place) ** 2) / (2 * deviation**2))
