"""Common operations of a forward: each bound against the dense Jacobian, each certificate against images sampled in its ball."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from torch import Tensor, nn

from robustbench_rkhs import UserError, certify
from robustbench_rkhs.bounds import opened, upper
from robustbench_rkhs.bounds.graph import chained
from robustbench_rkhs.certificates import CrownCertificate, IBPCertificate
from robustbench_rkhs.layers.standardised import Standardised
from robustbench_rkhs.lipschitz.activations import slopes
from robustbench_rkhs.relaxations.curves import CURVES, interval_of_curve, lines_of_curve
from robustbench_rkhs.relaxations.interval import through
from robustbench_rkhs.relaxations.region import Region, between
from robustbench_rkhs.relaxations.standardised import lines

SHAPE = (2, 4, 4)
X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def _sized(net: "Made", x: Tensor) -> Tensor:
    assert x.shape[1] == 2 and x.dim() == 4 and x.shape[1:] == (2, 4, 4)
    if x.ndim != 4 or x.size(2) < 2:
        raise ValueError
    batch, channels, height, width = x.shape
    return x.view(batch, channels * height * width)


def _halves(net: "Made", x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=2)
    first = torch.unbind(x, 1)[0]
    return torch.cat([one - other, first[:, None, :2].expand(-1, 2, -1, -1)], 3)


def _written(net: "Made", x: Tensor) -> Tensor:
    y = x.clone()
    y += 1
    return y + x


Operation = Callable[["Made", Tensor], Tensor]
LINEAR: dict[str, Operation] = {
    "float": lambda net, x: x.float(),
    "to a type": lambda net, x: x.to(torch.float32).to(dtype=torch.float32).type(torch.float32),
    "to a weight": lambda net, x: x.to(net.w.dtype).to(net.w).type_as(net.bias).to("cpu"),
    "double and back": lambda net, x: x.double().float(),
    "len": lambda net, x: x.view(len(x), -1),
    "sizes asserted": _sized,
    "reshape": lambda net, x: x.reshape(-1, 4, 8),
    "transpose": lambda net, x: x.transpose(2, 3),
    "permute": lambda net, x: x.permute(0, 2, 3, 1).contiguous(),
    "mT": lambda net, x: x.mT,
    "slices": lambda net, x: x[:, :, 1:3, ::2],
    "an entry": lambda net, x: x[:, 0, :, 1],
    "ellipsis": lambda net, x: x[..., 0],
    "a list of channels": lambda net, x: x[:, [1, 0, 1]],
    "clone": lambda net, x: x.clone() + x.clone(),
    "a clone that is written": _written,
    "flip and roll": lambda net, x: torch.roll(x.flip(3), 1, 2),
    "unsqueeze and squeeze": lambda net, x: x.unsqueeze(2).squeeze(2),
    "repeat": lambda net, x: x.repeat(1, 2, 1, 1),
    "parts": _halves,
    "mean over channels and rows": lambda net, x: x.mean((1, 2)),
    "mean over rows": lambda net, x: torch.mean(x, 2, keepdim=True),
    "sum": lambda net, x: x.sum(3),
    "x @ W": lambda net, x: x.flatten(1) @ net.w,
    "W @ x": lambda net, x: net.m @ x,
    "matmul": lambda net, x: torch.matmul(x, net.m),
    "einsum": lambda net, x: torch.einsum("bchw,hk->bkwc", x, net.m),
    "cat along rows": lambda net, x: torch.cat([x, 2 * x], 2),
    "cat along the last": lambda net, x: torch.cat((x[..., :2], x), dim=-1),
    "stack": lambda net, x: torch.stack([x, 1 - x], 1),
    "torchvision's Normalize": lambda net, x: net.norm(x),
    "torchvision's normalize": lambda net, x: TF.normalize(x, [0.5, 0.4], [0.25, 0.2]),
    "a question about its type": lambda net, x: 2 * x if isinstance(x, Tensor) else x + x,
    "a mask": lambda net, x: x * net.m,
    "a mean image": lambda net, x: (x - net.m) / (1 + net.m),
    "reflect": lambda net, x: F.pad(x, (1, 1, 2, 1), mode="reflect"),
    "replicate": lambda net, x: F.pad(x, (1, 1, 2, 1), mode="replicate"),
    "nearest": lambda net, x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda net, x: F.interpolate(x, size=(7, 5), mode="bilinear", align_corners=False),
    "average pool": lambda net, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive pool": lambda net, x: F.adaptive_avg_pool2d(x, 3),
    "transposed convolution": lambda net, x: F.conv_transpose2d(x, net.k, net.bias, stride=2, padding=1, output_padding=1),
    "3-d convolution": lambda net, x: F.conv3d(x[:, None], net.k[:1, None], padding=1),
}
BENT: dict[str, Operation] = {
    "clamp": lambda net, x: x.clamp(0.2, 0.7),
    "clamp from below": lambda net, x: torch.clamp(x, min=0.3),
    "clamp from above": lambda net, x: x.clamp_max(0.6),
    "abs": lambda net, x: (x - 0.5).abs(),
    "torch.max": lambda net, x: torch.max(x, 1 - x),
    "torch.min": lambda net, x: torch.minimum(x, 0.5 * x[:, [1, 0]]),
    "amax": lambda net, x: x.amax((2, 3)),
    "relu6": lambda net, x: F.relu6(10 * x - 3),
    "hardsigmoid": lambda net, x: F.hardsigmoid(4 * x - 2),
    "hardswish": lambda net, x: F.hardswish(8 * x - 4),
    "gelu": lambda net, x: F.gelu(4 * x - 2),
    "gelu, tanh": lambda net, x: F.gelu(4 * x - 2, approximate="tanh"),
    "silu": lambda net, x: F.silu(4 * x - 2),
    "mish": lambda net, x: F.mish(4 * x - 2),
    "softplus": lambda net, x: F.softplus(4 * x - 2, beta=2.0),
    "selu": lambda net, x: F.selu(4 * x - 2),
    "softsign": lambda net, x: F.softsign(4 * x - 2),
}


class Made(nn.Module):
    """One operation, and a linear layer where `classes`."""

    def __init__(self, operation: Operation, classes: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operation, self.norm = operation, T.Normalize([0.5, 0.4], [0.25, 0.2])
        self.bias, self.count = nn.Parameter(torch.randn(3)), nn.Parameter(torch.zeros(1).int(), requires_grad=False)
        for name, shape in {"w": (32, 7), "m": (4, 4), "k": (2, 3, 3, 3)}.items():
            self.register_buffer(name, torch.randn(shape))
        self.eval()
        self.head = nn.Linear(operation(self, X).flatten(1).shape[1], classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.operation(self, x).flatten(1)
        return self.head(x)


def jacobians(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([torch.autograd.functional.jacobian(lambda one: model(one[None])[0], one).flatten(1) for one in x])


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operation_has_the_norm_of_its_dense_matrix(name: str) -> None:
    model = Made(LINEAR[name]).eval()
    truth = torch.linalg.matrix_norm(jacobians(model, X[:1]).double(), 2).item()
    found = upper(model, SHAPE).value
    assert truth * (1 - 1e-5) <= found <= truth * (1 + 1e-5 if name != "3-d convolution" else 2)
    torch.testing.assert_close(chained(model, SHAPE)(X.double()).float(), model(X).flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BENT)
def test_the_bound_of_a_bent_operation_is_above_every_jacobian(name: str) -> None:
    model = Made(BENT[name]).eval()
    points = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 0.5
    truth = torch.linalg.matrix_norm(jacobians(model, points).double(), 2).max().item()
    found = upper(model, SHAPE).value
    assert truth * (1 - 1e-5) <= found <= 2.1 * truth


@pytest.mark.parametrize(
    ("name", "certificate"), [*((name, "crown") for name in LINEAR), *((name, one) for name in BENT for one in ("margin", "crown"))]
)
def test_no_image_sampled_in_a_certified_ball_has_another_label(name: str, certificate: str) -> None:
    model = Made({**LINEAR, **BENT}[name], 4).eval()
    y = model(X).argmax(1)
    radii = certify(model, X, y, certificates=(certificate,))
    assert radii.max() > 0
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(300, *X.shape, generator=generator)
    slopes = jacobians(model, X)  # and the steepest ways to another class
    steep = torch.stack([slopes[torch.arange(4), j] - slopes[torch.arange(4), y] for j in range(4)]).view(4, *X.shape)
    for way in (directions, steep):
        length = way.flatten(2).norm(dim=2).clamp_min(1e-12)[..., None, None, None]
        moved = X + way / length * radii.float().view(-1, 1, 1, 1) * 0.9999
        assert torch.equal(model(moved.flatten(0, 1)).argmax(1).view(-1, 4), y.expand(len(way), 4))


@pytest.mark.parametrize("module", [kind() for kind in CURVES] + [nn.GELU("tanh"), nn.Softplus(3.0)], ids=repr)
def test_the_lines_of_a_curve_hold_and_are_tight_and_its_slopes_are_in_their_interval(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    center = 3 * torch.randn(800, 1, dtype=torch.float64, generator=generator)
    radius = 8 * torch.rand(800, 1, dtype=torch.float64, generator=generator) ** 3
    radius[700:] = torch.logspace(0, 4, 100, dtype=torch.float64)[:, None]  # where both ends have the same slope
    region = between(center - radius, center + radius)
    lines, values = lines_of_curve(module, region), interval_of_curve(module, region)
    even = center + radius * torch.linspace(-1, 1, 2001, dtype=torch.float64)
    near = torch.linspace(-6, 6, 2001, dtype=torch.float64)  # of the bend
    z = torch.cat([even, torch.minimum(torch.maximum(near, region.lower), region.upper)], 1)
    f = module(z)
    over, under = lines.over * z + lines.height - f, f - lines.under[:, 0] * z - lines.depth
    assert min(over.min(), under.min(), (f - values.lower).min(), (values.upper - f).min()) >= 0
    narrow = slice(0, 700)
    assert max(over.amin(1)[narrow].max(), under.amin(1)[narrow].max()) < 1e-3
    assert (values.upper - f.amax(1, keepdim=True))[narrow].max() < 1e-3
    grid = torch.linspace(-25, 25, 500_001, dtype=torch.float64, requires_grad=True)  # steps of 1e-4, |f''| < 3.5
    (slope,) = torch.autograd.grad(module(grid).sum(), grid)
    low, high = slopes(module)
    assert low - 1e-9 <= slope.min() and slope.max() <= high + 1e-9


def test_the_interval_of_slopes_of_gelu_and_mish_has_room_for_what_lies_between_the_points_of_a_grid() -> None:
    for module in (nn.GELU("tanh"), nn.Mish()):
        z = torch.linspace(-12, 12, 480_001, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(module(z).sum(), z, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), z)
        low, high = slopes(module)
        third = 4.0  # a bound of |f'''|; near an extremum of f' a grid of step h misses at most third h^2 / 8
        room = third * (24 / 480_000) ** 2 / 8
        assert bend.abs().max() < 1 and low <= slope.min() - room and slope.max() + room <= high


def test_a_final_log_softmax_changes_no_radius() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    y = net(X).argmax(1)
    forms = [nn.Sequential(*net, nn.LogSoftmax(1)).eval(), nn.Sequential(net, nn.LogSoftmax(-1)).eval(), Ended(net).eval()]
    for certificate in ("margin", "liplt", "crown"):
        wanted = certify(net, X, y, certificates=(certificate,))
        for form in forms:
            torch.testing.assert_close(certify(form, X, y, certificates=(certificate,)), wanted, rtol=1e-9, atol=0)
    p = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    derivative = torch.eye(4, dtype=torch.float64) - torch.ones(4, 1, dtype=torch.float64) * p
    assert torch.linalg.matrix_norm(derivative, 2) <= upper(nn.Sequential(nn.LogSoftmax(1)), (4,)).value <= 2 * (1 + 1e-9)


class Ended(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.net(x), dim=1)


REFUSED: dict[str, tuple[Operation, str]] = {
    "half": (lambda net, x: x.half().float(), "its forward casts to float16"),
    "integers": (lambda net, x: (10 * x).long().float(), "its forward casts to int64"),
    "the number of images": (lambda net, x: x * 2 if len(x) == 3 else x, "cannot be traced"),
    "values": (lambda net, x: x * 2 if x.sum() > 0 else x, "cannot be traced"),
    "values, behind a size": (lambda net, x: x * 2 if x.shape[1] == x.sum((1, 2, 3)).amax() else x, "cannot be traced"),
    "a size of the batch": (lambda net, x: x * 2 if x.shape[0] * 2 == 6 else x, "cannot be traced"),
    "all sizes": (lambda net, x: x * 2 if x.shape == (3, 2, 4, 4) else x, "cannot be traced"),
    "one image of the batch": (lambda net, x: x - x[:1], "not one entry for each image"),
    "flipped batch": (lambda net, x: x.flip(0), "not one entry for each image"),
    "mean over the batch": (lambda net, x: x - x.mean(0, keepdim=True), "over the batch"),
    "a quarter of the number of images": (lambda net, x: x * (1 + len(x) // 4), "computes with the number of images"),
    "as wide as there are images": (lambda net, x: F.pad(x, (0, x.shape[0] // 100)), "computes with the number of images"),
    "pixels of all images": (lambda net, x: x + x.numel() // 10**6, "computes with the number of images"),
    "rolled batch": (lambda net, x: torch.roll(x, 6, 0), "rolls the batch"),
    "rolled batch and rows": (lambda net, x: x.roll((6, 1), (-4, 2)), "rolls the batch"),
    "the type of a buffer": (lambda net, x: x * (2 if net.m.dtype == torch.float32 else 1), "other operations in its own type"),
    "to the integers of a weight": (lambda net, x: (x * 2.0**16).to(net.count.dtype).float() / 2.0**16, "casts to int32"),
    "other pixels in float32": (lambda net, x: F.interpolate(x, size=83, mode="nearest-exact"), "take different pixels"),
    "softmax": (lambda net, x: x.softmax(1), "no rule for a softmax"),
    "attention": (lambda net, x: F.scaled_dot_product_attention(x, x, x), "attention multiplies values"),
    "a product": (lambda net, x: x * x, "two values that both depend on the image"),
    "response norm": (lambda net, x: F.local_response_norm(x, 2), "no bound is proved here"),
    "instance norm": (lambda net, x: F.instance_norm(x), "nn.InstanceNorm2d has one"),
    "written through a view": (lambda net, x: (x[:, :1].mul_(2), x)[1] + 0, "overwrites"),
    "antialias": (lambda net, x: F.interpolate(x, size=2, mode="bilinear", antialias=True), "no rule for antialias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_with_its_reason(name: str) -> None:
    operation, line = REFUSED[name]
    model = Made(lambda net, x: operation(net, x.clone()), 4).eval()
    with pytest.raises(UserError, match=line):
        certify(model, X, model(X).argmax(1), certificates=("margin", "crown"))


def test_a_model_of_float64_that_casts_to_float32_is_refused() -> None:
    model = Made(lambda net, x: x.float().double(), 4).double().eval()
    with pytest.raises(UserError, match="casts to float32, which rounds what it computes in float64"):
        certify(model, X.double(), model(X.double()).argmax(1), certificates=("margin",))


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "ReflectionPad2d": (nn.ReflectionPad2d((1, 2, 0, 3)), (2, 4, 4)),
    "ReplicationPad2d": (nn.ReplicationPad2d(2), (2, 4, 4)),
    "CircularPad2d": (nn.CircularPad2d(1), (2, 4, 4)),
    "ReflectionPad1d": (nn.ReflectionPad1d(2), (2, 5)),
    "ReflectionPad1d of vectors": (nn.ReflectionPad1d(2), (5,)),
    "ReplicationPad2d of matrices": (nn.ReplicationPad2d(2), (4, 4)),
    "nearest": (nn.Upsample(scale_factor=1.5), (1, 4, 4)),
    "bilinear": (nn.Upsample((3, 7), mode="bilinear", align_corners=True), (2, 4, 5)),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 4, 4)),
    "AvgPool2d": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 6, 4)),
    "AvgPool2d without padding in the mean": (nn.AvgPool2d((3, 2), 1, 1, count_include_pad=False), (2, 4, 4)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((3, 2)), (2, 5, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), (2, 4, 3)),
    "dilated ConvTranspose2d": (nn.ConvTranspose2d(2, 3, 2, 1, dilation=2), (2, 3, 3)),
    "ConvTranspose1d": (nn.ConvTranspose1d(2, 4, 3, 2, 1, 1, groups=2), (2, 5)),
    "dilated ConvTranspose1d": (nn.ConvTranspose1d(2, 3, 3, 1, 2, dilation=2), (2, 6)),
    "ConvTranspose3d": (nn.ConvTranspose3d(2, 2, 2, 2), (2, 2, 1, 3)),
    "overlapping ConvTranspose3d": (nn.ConvTranspose3d(2, 4, 3, 2, 1, 1, groups=2), (2, 2, 2, 3)),
    "ChannelShuffle": (nn.ChannelShuffle(2), (4, 2, 2)),
    "Unflatten": (nn.Unflatten(1, (2, 4)), (8,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_linear_layers_of_torch_have_the_norm_of_their_matrix(name: str) -> None:
    torch.manual_seed(0)
    module, shape = LAYERS[name]
    double = module.double()
    size = math.prod(shape)
    zero = double(torch.zeros(1, *shape, dtype=torch.float64))
    matrix = (double(torch.eye(size, dtype=torch.float64).view(size, *shape)) - zero).flatten(1).T
    truth = torch.linalg.matrix_norm(matrix, 2).item()
    loose = 3 if name == "overlapping ConvTranspose3d" else 1 + 1e-6  # from windows and sums of its kernel, not from its matrix
    assert truth * (1 - 1e-9) <= upper(nn.Sequential(double), shape).value <= truth * loose
    layers = [double, nn.Flatten(), nn.Linear(matrix.shape[0], 3)]
    net = nn.Sequential(*([nn.Unflatten(1, shape)] if len(shape) > 3 else []), *layers).float().eval()
    x = torch.rand(3, *shape) if len(shape) <= 3 else torch.rand(3, size)
    weight = (net[-1].weight.double() @ matrix).detach()
    y, logits = net(x).argmax(1), net(x).double()
    gaps = (logits.gather(1, y[:, None]) - logits) / (weight[y][:, None] - weight[None]).norm(dim=2)
    exact = gaps.scatter(1, y[:, None], torch.inf).amin(1)
    for certificate in ("margin", "crown"):
        if (name, certificate) == ("bicubic", "crown"):
            with pytest.raises(UserError, match="bicubic"):
                certify(net, x, y, certificates=(certificate,))
            continue
        radii = certify(net, x, y, certificates=(certificate,))
        assert (radii <= exact * (1 + 1e-4)).all() and (radii >= exact * (0.999 / loose if certificate == "margin" else 0.98)).all()


NORMS = {
    "LayerNorm": (nn.LayerNorm(4), (2, 3, 4), nn.Identity()),
    "LayerNorm of vectors": (nn.LayerNorm(5, eps=1e-2), (5,), nn.Identity()),
    "LayerNorm of images": (nn.LayerNorm((2, 3, 3)), (2, 3, 3), nn.Conv2d(2, 2, 3, padding=1)),
    "GroupNorm": (nn.GroupNorm(2, 4, eps=1e-3), (4, 2, 3), nn.Conv2d(4, 4, 1)),
    "InstanceNorm": (nn.InstanceNorm2d(2), (2, 3, 3), nn.Conv2d(2, 2, 3, padding=1)),
    "affine InstanceNorm of sequences": (nn.InstanceNorm1d(2, affine=True), (2, 4), nn.Conv1d(2, 2, 3, padding=1)),
}


@pytest.mark.parametrize("name", NORMS)
def test_layers_that_divide_by_the_standard_deviation_are_bounded(name: str) -> None:
    """The Lipschitz bound is attained where all values agree, and no Jacobian is above it; intervals and lines hold at every
    sampled image, and what is certified has its label there."""
    torch.manual_seed(0)
    norm, shape, before = NORMS[name]
    for one in [norm.weight, norm.bias] if norm.weight is not None else []:
        nn.init.normal_(one)
    size = math.prod(shape)
    net = nn.Sequential(before, norm, nn.Flatten(), nn.Linear(size, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    alone = nn.Sequential(norm).double().eval()
    steepest = 1.0 if norm.weight is None else norm.weight.abs().max().item()
    bound = upper(opened(alone, shape), shape).value
    assert bound == pytest.approx(steepest / math.sqrt(norm.eps), rel=1e-6)
    flat = torch.autograd.functional.jacobian(lambda z: alone(z[None])[0], torch.ones(shape, dtype=torch.float64))
    assert 0.7 * bound <= torch.linalg.matrix_norm(flat.reshape(size, size), 2).item() <= bound
    for scale in (1e-3, 1.0):
        x = scale * torch.randn(shape, dtype=torch.float64)
        slope = torch.autograd.functional.jacobian(lambda z: alone(z[None])[0], x)
        assert torch.linalg.matrix_norm(slope.reshape(size, size), 2).item() <= bound
    norm.float()
    x = torch.rand(2, *shape)
    y = net(x).argmax(1)
    for method, norm_ in ((CrownCertificate, "l2"), (CrownCertificate, "linf"), (IBPCertificate, "linf")):
        radius = method(norm=norm_)(net, x, y, torch.arange(2), (1e-4,)).radius
        assert (radius > 0).all()
        ways = torch.randn(2000, *shape)
        length = ways.flatten(1).norm(dim=1) if norm_ == "l2" else ways.flatten(1).abs().amax(1)
        ways = ways / length.view(-1, *[1] * len(shape)) if norm_ == "l2" else ways.sign()
        for image, label, most in zip(x, y, radius.tolist(), strict=True):
            assert (net.double()(image.double() + most * ways.double()).argmax(1) == label).all()
        net.float()


def test_lines_of_a_standardised_layer_hold_at_sampled_values() -> None:
    torch.manual_seed(0)
    module, center = Standardised(2, 1e-3), torch.randn(4, 6, dtype=torch.float64)
    for radius in (1e-6, 0.1, 3.0):
        region = Region(center, torch.full_like(center, radius))
        found, after = lines(module, region), through(module, region)
        z = center + radius * (2 * torch.rand(3000, 4, 6, dtype=torch.float64) - 1)
        values = module(z.flatten(0, 1)).view_as(z)
        parts = z.view(-1, 4, 2, 3)
        centred = (parts - parts.mean(3, keepdim=True)).view_as(z)
        assert found.depth is not None
        assert (found.under[:, 0] * centred + found.depth <= values + 1e-12).all()
        assert (values <= found.over * centred + found.height + 1e-12).all()
        assert (after.lower - 1e-12 <= values).all() and (values <= after.upper + 1e-12).all()
