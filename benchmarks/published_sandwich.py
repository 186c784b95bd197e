"""The Sandwich convolution as it was published, done straightforwardly: what ours is measured against.

    python benchmarks/published_sandwich.py [--quick]

At every call the kernel is padded to the image and transformed by rfft2, each frequency's Cayley transform takes a complex inverse,
and the result is applied between two pairs of Fourier transforms, under plain autograd. Written from the equations of Wang &
Manchester, ICML 2023; circular, stride one. Ours: a real product in place of the kernel's transform, elimination by blocks with a
gradient of two products in place of the inverse. Prints one JSON line with the median times of a forward and backward pass.
"""

import json
import math
import statistics
import time

import torch
from common import arguments
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers import SandwichConv

LAYERS = [(3, 32, 32), (32, 32, 32), (32, 64, 16), (64, 64, 16)]
"""Channels in and out and image side: the stride-one convolutions of the small CIFAR-10 network, its second half at 16 pixels."""
BATCH = 128


class PublishedSandwichConv(nn.Module):
    """sqrt2 A* Psi relu(sqrt2 Psi^-1 B x + b) with [A B]* worked out at every call."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs + outputs, 3, 3))
        nn.init.xavier_normal_(self.weight)
        self.alpha = nn.Parameter(self.weight.detach().norm())
        self.psi, self.bias = nn.Parameter(torch.zeros(outputs)), nn.Parameter(torch.zeros(outputs))
        rows, columns = torch.arange(side)[:, None], torch.arange(side // 2 + 1)[None]
        self.register_buffer("phase", torch.exp(2j * math.pi / side * (rows + columns)).flatten()[:, None, None])
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        size = (self.side, self.side)
        free = torch.fft.rfft2(self.alpha * self.weight / self.weight.norm(), s=size).flatten(2).permute(2, 1, 0) * self.phase
        lower, upper = free[:, : -self.outputs], free[:, -self.outputs :]
        eye = torch.eye(self.outputs, dtype=free.dtype, device=x.device)
        z = upper - upper.mH + lower.mH @ lower
        inverse = torch.inverse(eye + z)
        a, b = (inverse @ (eye - z)).mH, (-2 * lower @ inverse).mH
        waves = torch.fft.rfft2(x).flatten(2).permute(2, 1, 0)
        psi = self.psi.exp()[:, None, None]
        hidden = self._back(math.sqrt(2) * b @ waves) / psi + self.bias[:, None, None]
        hidden = torch.fft.rfft2(functional.relu(hidden) * psi).flatten(2).permute(2, 1, 0)
        return self._back(math.sqrt(2) * a.mH @ hidden)

    def _back(self, waves: Tensor) -> Tensor:
        return torch.fft.irfft2(waves.permute(2, 1, 0).unflatten(-1, (self.side, self.side // 2 + 1)), s=(self.side,) * 2)


def times(quick: bool, device: str) -> dict[str, float]:
    """Seconds of both, their ratio, and how far the two functions are apart at the same parameters."""
    totals, apart = {"published": 0.0, "ours": 0.0}, 0.0
    for inputs, outputs, side in LAYERS[-1:] if quick else LAYERS:
        torch.manual_seed(0)
        published, ours = PublishedSandwichConv(inputs, outputs, side).to(device), SandwichConv(inputs, outputs).to(device)
        with torch.no_grad():  # one function: rows of U first, and the axes of the kernel swapped
            weight = published.weight.transpose(0, 1)
            ours.weight.copy_(torch.cat([weight[inputs:], weight[:inputs]]))
            ours.alpha.copy_(published.alpha)
        x = torch.randn(16 if quick else BATCH, inputs, side, side, device=device)
        with torch.no_grad():
            apart = max(apart, (published(x) - ours(x)).abs().max().item())
        seen: dict[str, list[float]] = {"published": [], "ours": []}
        for _ in range(3 if quick else 9):
            for name, layer in (("published", published), ("ours", ours)):
                seen[name].append(step(layer, x))
        for name, some in seen.items():
            totals[name] += statistics.median(some[1:])
    ratio = totals["published"] / totals["ours"]
    return {"sandwich_conv_speedup": ratio, **{f"{k}_seconds": v for k, v in totals.items()}, "sandwich_conv_error": apart}


def step(layer: nn.Module, x: Tensor) -> float:
    """Seconds of a forward and a backward pass, to weights and input; CPU seconds on one CPU thread, as neighbours disturb less."""
    clock = time.process_time if not x.is_cuda and torch.get_num_threads() == 1 else time.perf_counter
    x = x.clone().requires_grad_()
    if x.is_cuda:
        torch.cuda.synchronize()
    started = clock()
    layer(x).square().sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    given = arguments(__doc__)
    print(json.dumps(times(given.quick, given.device)))
