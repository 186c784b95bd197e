"""Seconds and excess of the proven norms of every convolution of a CIFAR ResNet-18, beside the plain way.

A part of certificates.py. Widths 64, 128, 256 and 512, 3x3, images of 32x32, strides of 2, 1x1 shortcuts; random weights (He).
Ours: the bound that the certificates use, proved by Cholesky. The peer: the full singular value decomposition of the kernel's
matrix at every frequency of the same torus in float64, which proves nothing about its rounding. Excess: over a Lanczos estimate of
the dense operator's norm, a lower bound of it, so that the excess is an upper one.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from robustbench_rkhs.bounds import steps
from robustbench_rkhs.lipschitz import Bound, gram_operator
from robustbench_rkhs.lipschitz.convolution import conv_axes, places_of, spectrum_parts


class Layer(NamedTuple):
    """A convolution and the side of its images."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    side: int

    def build(self, narrower: int = 1) -> nn.Conv2d:
        inputs, outputs = max(1, self.inputs // narrower), max(1, self.outputs // narrower)
        conv = nn.Conv2d(inputs, outputs, self.kernel, self.stride, self.kernel // 2, bias=False).double()
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return conv


def resnet18() -> list[Layer]:
    """The 20 convolutions in the order they run."""
    found, width, side = [Layer("stem", 3, 64, 3, 1, 32)], 64, 32
    for stage, outputs in enumerate((64, 128, 256, 512)):
        stride = 1 if stage == 0 else 2
        found.append(Layer(f"{stage + 1}.0.first", width, outputs, 3, stride, side))
        found += [Layer(f"{stage + 1}.0.shortcut", width, outputs, 1, stride, side)] if stride == 2 else []
        side, width = side // stride, outputs
        found += [Layer(f"{stage + 1}.{name}", width, width, 3, 1, side) for name in ("0.second", "1.first", "1.second")]
    return found


def naive(conv: nn.Conv2d, side: int) -> float:
    """The largest singular value at every frequency of the torus, all of them decomposed."""
    axes = conv_axes(conv, (side, side))
    cosine, sine, flat, shape, _ = spectrum_parts(conv.weight.detach()[None], axes)
    largest = 0.0
    for cosines, sines in zip(cosine.split(64), sine.split(64), strict=True):
        matrices = torch.complex(cosines @ flat, sines @ flat).view(-1, *shape[1:])
        _, singular, _ = torch.linalg.svd(matrices, full_matrices=False)
        largest = max(largest, singular.max().item())
    return largest


def timed(work: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    value = work(*given)
    return value, time.perf_counter() - started


def bound(conv: nn.Conv2d, inputs: int, side: int) -> Bound:
    """What the certificates use."""
    return steps(conv, (inputs, side, side))[0].bound


def dense(conv: nn.Conv2d, side: int) -> tuple[float, int]:
    """A lower estimate of the norm of the zero-padded operator, to many digits, and the smaller side of its matrix."""
    axes = conv_axes(conv, (side, side))
    outputs = axes[0].outputs, axes[1].outputs
    guess: float = gram_operator.guess(conv.weight.detach(), (side, side), outputs, places_of(axes), 80) ** 0.5
    return guess, min(conv.in_channels * side**2, conv.out_channels * outputs[0] * outputs[1])


def measure(quick: bool) -> dict[str, Any]:
    """All 20 convolutions both ways; quick: five small ones."""
    torch.manual_seed(0)
    layers = [layer for layer in resnet18() if not quick or layer.side <= 8][: 5 if quick else None]
    convs = [layer.build() for layer in layers]
    ours = [timed(bound, conv, layer.inputs, layer.side) for layer, conv in zip(layers, convs, strict=True)]
    peers = [timed(naive, conv, layer.side) for layer, conv in zip(layers, convs, strict=True)]
    small, rest = {}, {}
    for layer, conv, (found, _) in zip(layers, convs, ours, strict=True):
        guess, order = dense(conv, layer.side)
        (small if order <= gram_operator.SIDE else rest)[f"{layer.name} ({found.method})"] = round(
            100 * (found.value / guess - 1), 3
        )
    seconds, peer_seconds = (sum(seconds for _, seconds in way) for way in (ours, peers))
    return {
        "resnet18_seconds": round(seconds, 2),
        "resnet18_excess": max(small.values(), default=None),
        "resnet18_excess_unit": "percent above the dense operator's norm, where its matrix has a side of at most 8,192",
        "resnet18_excess_larger_layers": max(rest.values(), default=None),
        "resnet18_peer": "full SVD at every frequency of the torus, float64, nothing proved of its rounding",
        "resnet18_peer_seconds": round(peer_seconds, 2),
        "resnet18_peer_ratio": round(peer_seconds / seconds, 2),
        "resnet18_over_peer": max(
            round(100 * (found.value / value - 1), 4) for (found, _), (value, _) in zip(ours, peers, strict=True)
        ),
        "resnet18_layers": small | rest,
    }
