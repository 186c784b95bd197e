"""Random small networks of traced operations: every certificate at its claimed radius against a descent of our own."""

import random

import pytest
import torch
from torch import Tensor, nn

from robustbench_rkhs.certificates import CrownCertificate, IBPCertificate, LipLTCertificate, MarginCertificate, SdpCrownCertificate

BENDS = (nn.ReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.LeakyReLU)
QUICK = {"search": False, "steps": 12, "intervals": 32, "couplings": 12, "domains": 30, "seconds": 0.5}
ASKED = (0.003, 0.01, 0.03, 0.1, 0.3)


def _around(part: nn.Module, bend: nn.Module, x: Tensor) -> Tensor:
    return x - 0.7 * bend(part(x))


OPERATIONS = {
    "bend": lambda part, bend, x: bend(part(x)),
    "residual": _around,
    "clamp": lambda part, bend, x: part(x).clamp(-0.4, 0.6),
    "larger": lambda part, bend, x: torch.maximum(part(x), x),
    "smaller": lambda part, bend, x: torch.minimum(part(x), -x),
    "cat": lambda part, bend, x: torch.cat([x[:, :1], bend(part(x))[:, 1:]], 1),
    "einsum": lambda part, bend, x: bend(torch.einsum("nchw,oc->nohw", x, part.weight[:, :, 0, 0])),
    "matrix": lambda part, bend, x: bend(x) @ part.weight[:, 0].mean(0).repeat(2, 2)[:4, :4],
    "absolute": lambda part, bend, x: part(x).abs() - x.transpose(2, 3),
    "border": lambda part, bend, x: bend(nn.functional.pad(part(x), (1, 1, 0, 0), mode="reflect")[..., 1:5]),
    "halves": lambda part, bend, x: part(torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0].sigmoid()], 1)),
}


class Random(nn.Module):
    """Four random operations on images of 2 channels and 4 x 4 pixels, between two convolutions and two linear layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.names = draw.sample(list(OPERATIONS), 4)
        self.parts = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(5))
        self.bends = nn.ModuleList(draw.choice(BENDS)() for _ in range(4))
        self.middle, self.end = nn.Linear(32, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts[4]((x - 0.1307) / 0.3081)
        for name, part, bend in zip(self.names, self.parts, self.bends, strict=False):
            x = OPERATIONS[name](part, bend, x)
        return self.end(self.middle(x.flatten(1)).relu()) * 0.9


def _lowest(net: nn.Module, x: Tensor, y: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The smallest margin that 20 steps from the image and from a random point find within each radius."""
    best, most = torch.full((len(x),), torch.inf, dtype=x.dtype), radius.view(-1, 1, 1, 1)

    def inside(d: Tensor) -> Tensor:
        if norm == "linf":
            return torch.minimum(torch.maximum(d, -most), most)
        length = d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return torch.where(length > most, d * most / length.clamp_min(1e-300), d)

    for start in (0.0, 1.0):
        d = inside(start * most * torch.randn_like(x))
        for step in range(20):
            d = d.detach().requires_grad_()
            logits = net(x + d)
            margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
            best = torch.minimum(best, margin.detach())
            (slope,) = torch.autograd.grad(margin.sum(), d)
            way = slope.sign() if norm == "linf" else slope / slope.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
            d = inside(d.detach() - most * way * (1 - step / 20))
    return best


@pytest.mark.parametrize(("seed", "norm"), [(0, "l2"), (1, "linf"), (3, "l2")])
def test_no_certificate_is_broken_within_its_radius(seed: int, norm: str) -> None:
    net = Random(seed).eval()
    x = torch.rand(2, 2, 4, 4)
    y, exact = net(x).argmax(1), Random(seed).double().eval()
    exact.load_state_dict(net.state_dict())
    methods = [
        IBPCertificate(norm=norm, search=False),
        CrownCertificate(norm=norm, search=False),
        SdpCrownCertificate(norm=norm, **QUICK),
    ]
    methods += [MarginCertificate(), LipLTCertificate()] if norm == "l2" else []
    for method in methods:
        radius = method(net, x, y, torch.arange(2), ASKED).radius
        assert (radius > 0).any(), (net.names, method.name)
        low = _lowest(exact, x.double(), y, radius, norm)
        assert (low[radius > 0] > 0).all(), (net.names, method.name, radius, low)
