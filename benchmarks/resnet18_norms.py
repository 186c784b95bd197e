"""Seconds and excess of the proven norms of every convolution of a CIFAR ResNet-18, beside the plain way.

    python benchmarks/resnet18_norms.py            # all 20 convolutions, both ways
    python benchmarks/resnet18_norms.py --quick    # the plain way on one of each kind of the small ones

Widths 64, 128, 256 and 512, 3x3, images of 32x32, strides of 2, 1x1 shortcuts; random weights (He). Ours: the bound that the
certificates use, proved by Cholesky. The peer: the full singular value decomposition of the kernel's matrix at every frequency
of the same torus in float64, which proves nothing about its rounding. Excess over the truth: the same layers of the same
image sizes with fewer channels, whose zero-padded operators can be decomposed densely.
"""

import statistics
import time
from typing import NamedTuple

import torch
from common import arguments, finish
from torch import Tensor, nn

from robustbench_rkhs.lipschitz import convolution, steps
from robustbench_rkhs.lipschitz.convolution import conv_axes, operator_matrix, spectrum_parts


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


def timed(work, *given) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    value = work(*given)
    return value, time.perf_counter() - started


def bound(conv: nn.Conv2d, inputs: int, side: int) -> float:
    """What the certificates use."""
    return steps(conv, (inputs, side, side))[0].bound.value


def excess(layer: Layer) -> float:
    """The torus' bound over the norm of the dense operator, of the layer with so few channels that its side is at most 1,024."""
    narrower = max(1, layer.inputs * layer.side**2 // 1024, layer.outputs * (layer.side // layer.stride) ** 2 // 1024)
    conv = layer.build(narrower)
    axes = conv_axes(conv, (layer.side, layer.side))
    kernel: Tensor = conv.weight.detach()[None]
    return convolution.torus_norm(kernel, axes) / torch.linalg.matrix_norm(operator_matrix(kernel, axes)[0], ord=2).item() - 1


def main() -> None:
    given = arguments(__doc__ or "")
    torch.manual_seed(0)
    layers = resnet18()
    convs = [layer.build() for layer in layers]
    before = time.process_time()
    ours = [timed(bound, conv, layer.inputs, layer.side) for layer, conv in zip(layers, convs, strict=True)]
    processor_seconds = time.process_time() - before
    sampled = [
        i for i, layer in enumerate(layers) if not given.quick or layer.name in ("stem", "1.0.second", "2.0.shortcut", "3.0.first")
    ]
    peers = {i: timed(naive, convs[i], layers[i].side) for i in sampled}
    over = [excess(layer) for layer in layers if layer.kernel == 3 and (not given.quick or layer.side <= 8)]
    peer_seconds = sum(seconds for _, seconds in peers.values())
    figures = {
        "layers": len(layers),
        "seconds": round(sum(seconds for _, seconds in ours), 2),
        "processor_seconds": round(processor_seconds, 2),
        "slowest": max((round(seconds, 2), layer.name) for (_, seconds), layer in zip(ours, layers, strict=True)),
        "peer": "full SVD at every frequency, float64",
        "peer_layers": len(peers),
        "peer_seconds": round(peer_seconds, 2),
        "seconds_on_the_peers_layers": round(sum(ours[i][1] for i in peers), 2),
        "over_peer": max(ours[i][0] / value - 1 for i, (value, _) in peers.items()),
        "under_peer": min(ours[i][0] / value - 1 for i, (value, _) in peers.items()),
        "excess_over_dense_median": statistics.median(over),
        "excess_over_dense_largest": max(over),
    }
    sources = [f"robustbench_rkhs/lipschitz/{name}.py" for name in ("bounds", "convolution", "verified")]
    finish("resnet18_norms", figures, given, ["benchmarks/resnet18_norms.py", *sources])


if __name__ == "__main__":
    main()
