"""Known mistakes of published certificates, reproduced: the "certified" radius that each would give every image.

Nothing here is a certificate. Each function returns None where the mistake does not apply to the model or changes nothing.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.audit.factors import Factor, Linearised, Part, chained, copied, head, pairwise, power, rows, weighted
from robustbench_rkhs.audit.scene import Radii, Scene, radii
from robustbench_rkhs.bounds import upper
from robustbench_rkhs.runtime.counter_rng import draws

SAME = 1e-9
"""Relative change of a bound below which a mistake counts as changing nothing."""


def _with_bounds(scene: Scene, bounds: Tensor) -> Radii:
    return radii(scene.logits, scene.y, bounds, tuple(scene.x.shape[1:]), scene.norm)


def _with_logits(scene: Scene, logits: Tensor) -> Radii:
    return radii(logits.double(), scene.y, scene.bounds, tuple(scene.x.shape[1:]), scene.norm)


def _with_factor(scene: Scene, factor: Factor) -> Radii | None:
    """Radii by the product with the replaced factors; None if no bound changes."""
    changed, right = pairwise(scene.chain, scene.classes, factor), pairwise(scene.chain, scene.classes)
    return None if torch.allclose(changed, right, rtol=SAME, atol=0) else _with_bounds(scene, changed)


# Replacements for a layer's proven bound.


def power_factor(part: Part, iterations: int, start: str) -> float | None:
    """||A v|| after this many iterations, from all ones or from a random start, as GloRo, LiResNet and CPL certify."""
    if not weighted(part) or math.prod(part.inputs) == 0:
        return None
    zeros = torch.zeros(1, *part.inputs, dtype=torch.float64)
    v = torch.ones_like(zeros) if start == "ones" else draws(torch.zeros(1, dtype=torch.int64), 0, zeros, 0)
    return float(power(Linearised(part.module, zeros), v, iterations))


def reshaped_factor(part: Part) -> float | None:
    """Largest singular value of the kernel as a matrix of C_out rows: what torch's parametrizations.spectral_norm bounds."""
    if not isinstance(part.module, (nn.Conv1d, nn.Conv2d)):
        return None
    return float(torch.linalg.matrix_norm(part.module.weight.detach().flatten(1), 2))


def circular_factor(part: Part) -> float | None:
    r"""Norm of the circular convolution at the image's size, instead of the zero-padded one.

    .. math:: \max_\theta \frac1s \lVert [\hat K(\theta + 2\pi a / s)]_{a \in \{0..s-1\}^2} \rVert_2

    Stride s folds s^2 frequencies into one; where it does not divide the size it counts as 1.
    """
    conv = part.module
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros":
        return None
    height, width = part.inputs[1:]
    kernel = conv.weight.detach().unflatten(0, (conv.groups, -1))
    wrapped = kernel.new_zeros(*kernel.shape[:3], height, width)
    for i in range(kernel.shape[3]):
        for j in range(kernel.shape[4]):
            wrapped[..., i * conv.dilation[0] % height, j * conv.dilation[1] % width] += kernel[..., i, j]
    waves = torch.fft.fft2(wrapped).permute(3, 4, 0, 1, 2)
    folds = [step if size % step == 0 else 1 for step, size in zip(conv.stride, (height, width), strict=True)]
    waves = waves.unflatten(1, (folds[1], -1)).unflatten(0, (folds[0], -1))  # row fold, row, column fold, column, g, out, in
    waves = waves.permute(1, 3, 4, 5, 0, 2, 6).flatten(4) / math.sqrt(folds[0] * folds[1])
    return float(torch.linalg.matrix_norm(waves, 2).max())


def pool_factor(part: Part) -> float | None:
    """1 for a max-pool, even with overlapping windows."""
    return 1.0 if isinstance(part.module, (nn.MaxPool1d, nn.MaxPool2d)) else None


def slopes(part: Part) -> Tensor | None:
    r"""The factors of a normalisation, measured: :math:`f(x) = a \odot x + b`; None for any other layer.

    Independent of the class name: derived from f(0), f(1) and f of random numbers. A plain multiple of the input does not count.
    """
    if part.inputs != part.outputs or part.branches or weighted(part) or math.prod(part.inputs) == 0:
        return None
    zeros = torch.zeros(1, *part.inputs, dtype=torch.float64)
    x = draws(torch.zeros(1, dtype=torch.int64), 0, zeros, 1)
    with torch.no_grad():
        shift, one, found = (part.module(image.clone()) for image in (zeros, zeros + 1, x))
    by = one - shift
    if not torch.allclose(found, by * x + shift, rtol=1e-9, atol=1e-9 * float(one.abs().max() + 1)):
        return None
    if not (by != 0).all():
        return None
    multiple = not shift.any() and bool((by == by.flatten()[0]).all())
    return None if multiple and not isinstance(part.module, nn.modules.batchnorm._BatchNorm) else by.abs()


def normalisation_factor(part: Part) -> float | None:
    """1 for a normalisation, as if radii were measured in its units."""
    return None if slopes(part) is None else 1.0


def largest_deviation_factor(part: Part) -> float | None:
    """1 / max std instead of 1 / min std."""
    found = slopes(part)
    return None if found is None else float(found.min())


def groups_factor(part: Part) -> float | None:
    """The product of the groups' norms instead of the largest."""
    conv = part.module
    if not isinstance(conv, nn.Conv2d) or conv.groups == 1:
        return None
    inputs, total = part.inputs[0] // conv.groups, 1.0
    for kernel in conv.weight.detach().chunk(conv.groups):
        options: dict[str, Any] = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        height, width = kernel.shape[2:]
        alone = nn.Conv2d(inputs, len(kernel), (height, width), bias=False, dtype=torch.float64, **options)
        with torch.no_grad():
            alone.weight.copy_(kernel)
        total *= upper(alone.eval(), (inputs, *part.inputs[1:])).value
    return total


# The resulting radii.


def power_iteration(scene: Scene, iterations: int, start: str) -> Radii | None:
    """Power iteration instead of every layer's proven norm; the last layer's rows are exact."""
    return _with_factor(scene, partial(power_factor, iterations=iterations, start=start))


def one_factor(scene: Scene, factor: Factor) -> Radii | None:
    """One wrong factor in the product."""
    return _with_factor(scene, factor)


def at_input(scene: Scene, factor: Factor) -> Radii | None:
    """The wrong factor on layers before any weight: a normalisation there is that of the input."""
    first = _before_weights(scene)
    return _with_factor(scene, lambda part: factor(part) if part.path in first else None)


def inside(scene: Scene, factor: Factor) -> Radii | None:
    """The wrong factor on layers after weights: a normalisation there is BatchNorm or its replacement."""
    first = _before_weights(scene)
    return _with_factor(scene, lambda part: None if part.path in first else factor(part))


def _before_weights(scene: Scene) -> set[str]:
    found = set()
    for part in scene.chain:
        if part.branches or weighted(part):
            break
        found.add(part.path)
    return found


def unknown_as_one(scene: Scene) -> Radii | None:
    """Layers without a rule counted as 1, and so are operations outside layers."""
    return _with_bounds(scene, pairwise(scene.chain, scene.classes)) if scene.refused else None


def batch_statistics(scene: Scene) -> Radii | None:
    """BatchNorm left in training mode: logits and bounds use the statistics of these images."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    twin = copied(scene.model)
    norms = [module for module in twin.modules() if isinstance(module, kinds) and module.running_mean is not None]
    if not norms or len(scene.x) < 2:
        return None
    for module in norms:
        module.momentum = 1.0
        module.train()
    with torch.no_grad():
        logits = twin(scene.x)
    modules = dict(twin.eval().named_modules())
    chain = [
        part._replace(module=modules[part.path], proven=upper(modules[part.path], part.inputs).value)
        if isinstance(modules.get(part.path), kinds)
        else part
        for part in scene.chain
    ]
    return radii(logits, scene.y, pairwise(chain, scene.classes), tuple(scene.x.shape[1:]), scene.norm)


def root_two(scene: Scene) -> Radii:
    """margin / L with L the bound of all logits together, instead of pair bounds or sqrt(2) L."""
    whole = torch.full_like(scene.bounds, chained(scene.chain, lambda part: None)).fill_diagonal_(0)
    return _with_bounds(scene, torch.minimum(whole, scene.bounds))


def single_logits(scene: Scene) -> Radii | None:
    """The constant of one logit, max(||w_y||, ||w_j||), instead of the difference: last-layer normalisation taken as 1."""
    place = head(scene.chain, scene.classes)
    if place == len(scene.chain):
        return None
    lengths = rows(scene.chain[place:], scene.classes).norm(dim=1)
    single = chained(scene.chain[:place], lambda part: None) * torch.maximum(lengths[:, None], lengths)
    return _with_bounds(scene, single.fill_diagonal_(0))


def ties(scene: Scene) -> Radii | None:
    """Logits that tie with the label's are ignored, so that ties count as correct and certified."""
    shape = tuple(scene.x.shape[1:])
    found = radii(scene.given, scene.y, scene.bounds, shape, scene.norm, ties=True)
    return None if torch.equal(found, _with_logits(scene, scene.given)) else found


def float32(scene: Scene) -> Radii:
    """Margins in the network's arithmetic, ignoring its rounding."""
    return _with_logits(scene, scene.given)


def tf32(scene: Scene) -> Radii:
    """Logits with a 10-bit mantissa, as from TF32 products."""
    return _with_logits(scene, ten_bits(scene.given))


def bfloat16(scene: Scene) -> Radii:
    """Logits rounded to bfloat16."""
    return _with_logits(scene, scene.given.to(torch.bfloat16))


def ten_bits(x: Tensor) -> Tensor:
    """Rounded to the nearest number of a 10-bit mantissa."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2.0**11).round(), exponent - 11)


def stale_cache(scene: Scene) -> Radii | None:
    """Logits from caches of old weights, with bounds of the current weights."""
    return _with_logits(scene, scene.given) if scene.stale else None


MISTAKES: dict[str, Callable[[Scene], Radii | None]] = {
    **{
        f"power iteration, {count} from {words}": partial(power_iteration, iterations=count, start=start)
        for start, words in (("random", "a random start"), ("ones", "all ones"))
        for count in (1, 2, 5, 10, 100)
    },
    "norm of the reshaped kernel": partial(one_factor, factor=reshaped_factor),
    "circular FFT at the image's size": partial(one_factor, factor=circular_factor),
    "overlapping max-pool counted as 1": partial(one_factor, factor=pool_factor),
    "input normalisation dropped": partial(at_input, factor=normalisation_factor),
    "1 / max std of the input normalisation": partial(at_input, factor=largest_deviation_factor),
    "BatchNorm counted as 1": partial(inside, factor=normalisation_factor),
    "BatchNorm in training mode": batch_statistics,
    "layers without a rule counted as 1": unknown_as_one,
    "groups multiplied": partial(one_factor, factor=groups_factor),
    "margin / L, sqrt(2) left out": root_two,
    "one logit's constant for a difference": single_logits,
    "ties counted as certified": ties,
    "float32 margins": float32,
    "10-bit logits (TF32)": tf32,
    "bfloat16 logits": bfloat16,
    "stale caches": stale_cache,
}
"""Every mistake by its name in the report."""
