"""Norms, balls and boxes, shared by the attacks and the evaluation that counts their results."""

import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor

from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.counter_rng import draws


def per_image(values: Shaped[Tensor, " batch"], x: Tensor) -> Tensor:
    """One value per image, shaped to broadcast over the images `x`."""
    return values.view(-1, *[1] * (x.dim() - 1))


def distances(x: Float[Tensor, "batch *image"], other: Float[Tensor, "batch *image"], norm: Norm) -> Float[Tensor, " batch"]:
    """||x_i - other_i|| of every image, computed in float64."""
    delta = (other.double() - x.double()).flatten(1)
    return delta.norm(dim=1) if norm == "l2" else delta.abs().amax(1)


def ends(
    x: Float[Tensor, "batch *image"], eps: Float64[Tensor, " batch"], box: Box
) -> tuple[Float[Tensor, "batch *image"], Float[Tensor, "batch *image"]]:
    """The lowest and highest pixels within eps of `x` and inside the box, exact in float64."""
    length = eps.to(x.dtype)
    length = per_image(torch.where(length.double() > eps, torch.nextafter(length, torch.zeros_like(length)), length), x)
    limit = per_image(eps, x)
    low, high = x - length, x + length
    low = torch.where(x.double() - low.double() > limit, torch.nextafter(low, x), low)
    high = torch.where(high.double() - x.double() > limit, torch.nextafter(high, x), high)
    return (low.clamp(0, 1), high.clamp(0, 1)) if box == "unit" else (low, high)


def unit(gradient: Float[Tensor, "batch *image"]) -> Float[Tensor, "batch *image"]:
    """Each image's gradient, scaled to l2 length one; zero stays zero; works at any scale."""
    peak = per_image(gradient.flatten(1).abs().amax(1), gradient)
    scaled = gradient / torch.where(peak > 0, peak, 1)
    norm = per_image(scaled.flatten(1).norm(dim=1), gradient)
    return scaled / torch.where(norm > 0, norm, 1)


def steepest(gradient: Float[Tensor, "batch *image"], norm: Norm) -> Float[Tensor, "batch *image"]:
    """The steepest ascent direction of length one: the normalised gradient (l2; zero stays zero) or its signs (linf)."""
    return unit(gradient) if norm == "l2" else gradient.sign()


def fading(step: int, steps: int) -> float:
    """Step length as a share of the first: 1 at first, falling linearly to a twentieth after the last step."""
    return 1 - 0.95 * step / steps


def random_offset(
    keys: Int[Tensor, " batch"], seed: int, x: Float[Tensor, "batch *image"], norm: Norm, draw: int = 0, *, surface: bool = False
) -> Float[Tensor, "batch *image"]:
    """A random offset in the unit ball, seeded by (seed, key, draw); used for random starts.

    l2: a uniform direction at a uniform share of the radius; linf: uniform. `surface`: scaled to length one.
    """
    noise = draws(keys, seed, x, draw)
    uniform = torch.erf(noise / 2**0.5)
    if norm == "linf":
        return uniform / per_image(uniform.flatten(1).abs().amax(1), x) if surface else uniform
    return unit(noise) if surface else unit(noise) * per_image(uniform.flatten(1)[:, 0].abs(), x)


def into_ball(delta: Float[Tensor, "batch *image"], radius: Float[Tensor, " batch"], norm: Norm) -> Float[Tensor, "batch *image"]:
    """The offsets, shortened to at most the radius of each image."""
    limit = per_image(radius, delta)
    if norm == "linf":
        return torch.maximum(torch.minimum(delta, limit), -limit)
    length = per_image(delta.flatten(1).norm(dim=1), delta)
    return delta * (limit / torch.maximum(length, limit)).nan_to_num(nan=1.0)


def project(
    x: Float[Tensor, "batch *image"],
    adversarial: Float[Tensor, "batch *image"],
    norm: Norm,
    eps: float | Float64[Tensor, " batch"],
    box: Box,
) -> Float[Tensor, "batch *image"]:
    """Project into the box, then towards `x` into the ball around it; `eps`: one radius, or one per image.

    Shrinking towards `x`, which lies in the convex box, cannot leave the box again.
    """
    if box == "unit":
        adversarial = adversarial.clamp(0, 1)
    radius = eps.to(x) if isinstance(eps, Tensor) else x.new_full((len(x),), eps)
    return x + into_ball(adversarial - x, radius, norm)


def pull_inside(
    x: Float[Tensor, "batch *image"],
    adversarial: Float[Tensor, "batch *image"],
    norm: Norm,
    eps: float | Float64[Tensor, " batch"] | None,
    box: Box,
) -> Float[Tensor, "batch *image"]:
    """Project exactly into box and ball, with the distance measured in float64. NaN or infinity becomes `x` itself.

    `eps`: one radius for all images, or one per image; None or infinite for no ball. The offset is shortened by one part in 2^22
    at a time until the float64 distance is at most `eps`.
    """
    bad = ~adversarial.flatten(1).isfinite().all(1)
    inside = torch.where(per_image(bad, x), x, adversarial)
    if box == "unit":
        inside = inside.clamp(0, 1)
    if eps is None:
        return inside
    over = distances(x, inside, norm) > eps  # images that are inside already stay bit-identical to what the attack queried
    projected = project(x, inside, norm, eps, box)
    inside = torch.where(per_image(over, x), projected.clamp(0, 1) if box == "unit" else projected, inside)
    for attempt in range(30):
        over = distances(x, inside, norm) > eps
        if not over.any():
            break
        shorter = x + (inside - x) * (1 - 2.0 ** (attempt - 22))
        inside = torch.where(per_image(over, x), shorter, inside)
    return torch.where(per_image(distances(x, inside, norm) > eps, x), x, inside)
