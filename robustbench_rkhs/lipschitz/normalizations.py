"""Proven Lipschitz bounds of normalisations whose statistics are fixed."""

import math

from torch import nn

from robustbench_rkhs.lipschitz.bounds import Bound, Uncertifiable, affine, rule, upwards, weights
from robustbench_rkhs.lipschitz.rounding import fan
from robustbench_rkhs.runtime.modes import advice


@rule.register(nn.BatchNorm1d)
@rule.register(nn.BatchNorm2d)
def _(module: nn.BatchNorm1d | nn.BatchNorm2d, shape: tuple[int, ...]) -> Bound:
    """max_c |gamma_c| / sqrt(var_c + eps): at its running statistics it scales and shifts each channel."""
    if module.running_mean is None or module.running_var is None:
        raise Uncertifiable("it keeps no running statistics: it normalises by the batch in every mode, mixing images")
    if module.training:
        raise Uncertifiable(f"in training mode it normalises by the batch, mixing images: {advice(module)}")
    sides = 3 if isinstance(module, nn.BatchNorm2d) else 1
    if len(shape) != sides or shape[0] != module.num_features:
        raise Uncertifiable(f"expected {module.num_features} channels, found an input of shape {shape}")
    weights(module.running_mean, "running mean")
    variance = weights(module.running_var, "running variance") + module.eps
    if not (variance > 0).all():
        raise Uncertifiable(f"expected variances above 0, found {variance.min().item():.3g}")
    slopes = variance.rsqrt()
    if module.affine:
        weights(module.bias, "bias")
        slopes = slopes * weights(module.weight, "weight").abs()
    steepest = slopes.max().item()
    return Bound(upwards(steepest) if steepest else 0.0, shape)


@rule.register
def _(module: nn.LogSoftmax, shape: tuple[int, ...]) -> Bound:
    """sqrt(n): its derivative at probabilities p is I - 1 p^T, a projection of norm sqrt(n) |p|. Differences of logits stay."""
    if len(shape) != 1 or module.dim not in (1, -1):
        raise Uncertifiable(
            f"expected a log-softmax over the logits, found dimension {module.dim} of an input of shape {tuple(shape)}"
        )
    return Bound(upwards(math.sqrt(shape[0])), shape)


for _kind in (nn.BatchNorm1d, nn.BatchNorm2d):
    affine.register(_kind, lambda module: not module.training)
    fan.register(_kind, lambda module, inputs, outputs: (1, 1))
