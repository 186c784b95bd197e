"""Any module as a chain of layers: the same outputs, bounds above every slope found, and refusals that say where and what."""

import math
from decimal import Context, Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from robustbench_rkhs.bounds import pairs, steps, upper
from robustbench_rkhs.bounds.eclipse import eclipse_pairs
from robustbench_rkhs.bounds.folding import FoldedConv2d, FoldedLinear
from robustbench_rkhs.bounds.graph import chained
from robustbench_rkhs.bounds.liplt import liplt_pairs
from robustbench_rkhs.bounds.network import joined, merged
from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.layers import Concatenate, Residual, Sandwich, Scale
from robustbench_rkhs.lipschitz import Uncertifiable


class Made(nn.Module):
    """A model from its parts and a function of them and the image."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def made(run, **modules):
    model = Made(run, **modules)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.3, 2)
    return model.eval()


def steepest(model, shape, climbs=12, starts=6):
    """The largest Jacobian norm at random points and on the way uphill from them: no bound may be below it."""
    torch.manual_seed(0)
    double, sides = model.double(), [1] * len(shape)
    x = torch.randn(starts, *shape, dtype=torch.float64) * torch.logspace(-1, 0.7, starts).double().view(-1, *sides)
    best, largest = x, torch.zeros(starts, dtype=torch.float64)
    for _ in range(climbs):
        x = x.detach().clone().requires_grad_()
        outputs = double(x * 1.0).flatten(1)
        rows = [torch.autograd.grad(outputs[:, k].sum(), x, retain_graph=True)[0].flatten(1) for k in range(outputs.shape[1])]
        norms = torch.linalg.matrix_norm(torch.stack(rows, 1), ord=2)
        best = torch.where((norms > largest).view(-1, *sides), x.detach(), best)
        largest = torch.maximum(norms, largest)
        x = best + 0.1 * torch.randn_like(best)
    model.float()
    return largest.max().item()


def dense(model, shape):
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    double = model.double()
    with torch.no_grad():
        matrix = (double(basis) - double(torch.zeros_like(basis[:1]))).flatten(1).T
    model.float()
    return matrix


def same(model, shape, tolerance=1e-9):
    """The chain's outputs are the model's, on images it was not made with; the model is as it was."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    chain = chained(model, shape)
    x = 2 * torch.randn(4, *shape, dtype=torch.float64)
    assert all(torch.equal(value, state[name]) and value.dtype == state[name].dtype for name, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(chain(x.clone()), model.double()(x.clone()), rtol=tolerance, atol=tolerance)
    model.float()
    return chain


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def resnet():
    return made(
        lambda m, x: m.fc(torch.flatten(m.pool(m.layer1(m.maxpool(m.relu(m.bn1(m.conv1(x)))))), 1)),
        conv1=nn.Conv2d(3, 4, 3, 2, 1, bias=False),
        bn1=nn.BatchNorm2d(4),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, 2, 1),
        layer1=nn.Sequential(Block(4, 4, 1), Block(4, 6, 2)),
        pool=nn.AdaptiveAvgPool2d((1, 1)),
        fc=nn.Linear(6, 3),
    )


def vgg():
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(True),
    )
    head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 3))
    return made(
        lambda m, x: m.head(m.pool(m.features(x)).view(x.size(0), -1)), features=features, pool=nn.AdaptiveAvgPool2d(2), head=head
    )


class Dense(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2, 3, padding=1)

    def forward(self, features):
        return self.conv(F.relu(self.norm(torch.cat(features, 1))))


def densenet():
    def run(m, x):
        features = [m.stem(x)]
        for block in m.blocks:
            features.append(block(features))
        return m.fc(torch.cat(features, 1).mean((2, 3)))

    return made(run, stem=nn.Conv2d(3, 2, 3), blocks=nn.ModuleList([Dense(2), Dense(4), Dense(6)]), fc=nn.Linear(8, 3))


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.5]).view(1, 3, 1, 1))
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x):
        x = (x * 2 - 1 - self.mean) / self.std
        x = F.silu(self.conv(x)) - 0.25
        return self.fc(F.pad(F.gelu(3 - x), (1, 0, -1, 1)).flatten(1))


NETWORKS = {
    "resnet": (resnet, (3, 12, 12)),
    "vgg": (vgg, (3, 8, 8)),
    "densenet": (densenet, (3, 6, 6)),
    "normalised": (lambda: Normalised().eval(), (3, 8, 7)),
    "functional": (
        lambda: made(
            lambda m, x: F.linear(torch.relu(F.conv2d(x, m.a.weight, None, 2)).reshape(x.shape[0], -1), m.b.weight),
            a=nn.Conv2d(2, 3, 3),
            b=nn.Linear(12, 3),
        ),
        (2, 6, 5),
    ),
    "tangled": (
        lambda: made(
            lambda m, x: (lambda a: (lambda b: m.c(a + b) + torch.tanh(b - m.d(a)))(torch.sigmoid(m.b(a))))(
                F.leaky_relu(m.a(x), 0.2)
            ),
            **{name: nn.Linear(3, 3) for name in "abcd"},
        ),
        (3,),
    ),
}


@pytest.mark.parametrize("build, shape", NETWORKS.values(), ids=NETWORKS.keys())
def test_chain_computes_what_the_model_does_and_its_bound_is_above_every_slope(build, shape):
    torch.manual_seed(1)
    model = build()
    chain = same(model, shape)
    bound, found = upper(model, shape), steepest(model, shape)
    assert 0 < found <= bound.value and bound.shape == (3,)
    assert [step.path for step in steps(model, shape)] == list(chain._modules)


def test_a_concatenation_is_the_root_of_the_sum_of_squares():
    """Two identities attain sqrt 2: a rule without squares says 2, one that takes the largest says 1."""
    twice = made(lambda m, x: torch.cat([x, x], 1))
    assert upper(twice, (5,))[:2] == (pytest.approx(math.sqrt(2)), (10,)) and upper(twice, (5,)).value >= math.sqrt(2)
    assert upper(twice, (2, 40, 40)).value == pytest.approx(math.sqrt(2))  # too large for its matrix
    bent = Concatenate([nn.Tanh(), nn.Sequential(Scale(3.0), nn.ReLU()), nn.Identity()])
    bound = upper(bent, (2, 3, 3))
    assert bound[:2] == (pytest.approx(math.sqrt(11)), (6, 3, 3)) and bound.value >= steepest(nn.Sequential(bent), (2, 3, 3)) > 3
    x = torch.full((1, 1), 1e-3, dtype=torch.float64)
    assert (bent(x) - bent(2 * x)).norm() / x.norm() == pytest.approx(math.sqrt(11), rel=1e-5)
    with pytest.raises(Uncertifiable, match="differ in their channels only"):
        upper(Concatenate([nn.Identity(), nn.MaxPool2d(2)]), (2, 4, 4))


def test_a_concatenation_of_a_concatenation_shares_it():
    """Written out, the seventh block of a dense net would hold its predecessors 2^6 times."""
    blocks = nn.ModuleList([nn.Linear(1 + k, 1) for k in range(9)])

    def run(m, x):
        features = [x]
        for block in m.blocks:
            features.append(torch.tanh(block(torch.cat(features, 1))))
        return torch.cat(features, 1)

    chain = same(made(run, blocks=blocks), (1,))
    assert sum(isinstance(module, nn.Linear) for module in chain.modules()) == 9
    assert upper(made(run, blocks=blocks), (1,)).value <= math.prod(1 + block.weight.norm() for block in blocks)


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize("groups", [1, 2])
def test_identity_and_convolution_are_one_kernel(mode, groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode, groups=groups)
    model = made(lambda m, x: x + m.conv(x), conv=conv)
    (layer,) = same(model, (4, 6, 6))
    assert type(layer) is FoldedConv2d
    truth = torch.linalg.matrix_norm(dense(model, (4, 6, 6)), ord=2).item()
    (step,) = steps(model, (4, 6, 6))
    assert truth <= step.bound.value <= truth * (1 + (1e-6 if mode == "circular" else 0.15))
    assert truth <= upper(model, (4, 6, 6)).value <= truth * (1 + 1e-6)
    apart = 1 + torch.linalg.matrix_norm(dense(conv, (4, 6, 6)), ord=2).item()
    assert upper(model, (4, 33, 33)).value < 0.98 * apart


@pytest.mark.parametrize("stride", [1, 2])
def test_kernels_of_two_sizes_are_one(stride):
    torch.manual_seed(0)
    model = made(
        lambda m, x: m.big(x) + m.norm(m.small(x)),
        big=nn.Conv2d(2, 3, (3, 5), stride, padding=(1, 2), bias=False),
        small=nn.Conv2d(2, 3, 1, stride),
        norm=nn.BatchNorm2d(3),
    )
    (layer,) = same(model, (2, 7, 6))
    assert type(layer) is FoldedConv2d and layer.kernel_size == (3, 5)
    truth = torch.linalg.matrix_norm(dense(model, (2, 7, 6)), ord=2).item()
    assert truth <= upper(model, (2, 7, 6)).value <= truth * (1 + 1e-6)


def test_linear_sums_are_one_matrix_and_what_cancels_is_left_alone():
    torch.manual_seed(0)
    linear = nn.Linear(5, 5)
    model = made(lambda m, x: m.linear(x) + x, linear=linear)
    (layer,) = same(model, (5,))
    truth = torch.linalg.matrix_norm(linear.weight.double() + torch.eye(5), ord=2).item()
    assert type(layer) is FoldedLinear and upper(model, (5,)).value == pytest.approx(truth, rel=1e-6)
    nn.init.eye_(linear.weight)
    linear.weight.data.neg_()
    model.out = nn.Linear(5, 2).eval()
    model.run = lambda m, x: m.out(F.relu(m.linear(x) + x))
    assert isinstance(chained(model, (5,))[0], Residual)
    bound = pairs(model, (5,), 2)[0, 1]
    assert 0 < bound < 1e-8  # nothing is left, but rounding does not prove that there is nothing


def test_affine_branches_of_any_form_are_one_matrix_where_it_is_small():
    torch.manual_seed(0)
    model = Residual(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)), nn.Identity())
    truth = torch.linalg.matrix_norm(dense(model, (2, 5, 5)), ord=2).item()
    assert truth <= upper(model, (2, 5, 5)).value <= truth * (1 + 1e-6)
    whole = nn.Sequential(model, nn.Flatten(), nn.Linear(50, 3))
    rows = dense(whole, (2, 5, 5))
    torch.testing.assert_close(pairs(whole, (2, 5, 5), 3), (rows[:, None] - rows[None]).norm(dim=2), rtol=1e-7, atol=1e-12)
    both = nn.Sequential(Concatenate([model, nn.AvgPool2d(3, 1, 1)]))
    truth = torch.linalg.matrix_norm(dense(both, (2, 5, 5)), ord=2).item()
    assert truth <= upper(both, (2, 5, 5)).value <= truth * (1 + 1e-6)


def test_rounding_of_a_sum_that_cancels_is_that_of_its_parts():
    """(A + B) x with B nearly -A: the dense norm is tiny, and its error is relative to A and B."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4, bias=False).double(), nn.Linear(4, 4, bias=False).double()
    first.weight.data *= 1e9
    second.weight.data = -first.weight.data
    bound = upper(Residual(nn.Sequential(first, Scale(3.0)), nn.Sequential(Scale(3.0), second)), (4,)).value
    exact = torch.linalg.matrix_norm(first.weight.detach(), ord=2).item()
    assert exact * 1e-15 <= bound <= exact * 1e-9


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.ELU(1.7)], ids=str)
def test_residual_blocks_count_the_middle_slope_with_the_shortcut(activation):
    torch.manual_seed(0)
    inner, outer, shortcut = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 6)
    outer.weight.data = -inner.weight.data.T.clone()  # x - W' a(W x): the best case
    block = Residual(nn.Sequential(inner, activation, outer), shortcut)
    nn.init.eye_(shortcut.weight)
    bound = upper(block, (6,)).value
    chains = [steps(branch, (6,)) for branch in (block.body, block.shortcut)]
    plain = sum(merged(chain) for chain in chains)
    assert steepest(block, (6,), 40) <= bound <= plain * (1 + 1e-12) and bound == pytest.approx(joined(chains, (6,)).value)
    if isinstance(activation, nn.ReLU):
        norm = torch.linalg.matrix_norm
        w1, w2 = (part.weight.detach().double() for part in (inner, outer))
        closed = norm(torch.eye(6) + w2 @ w1 / 2, ord=2) + norm(w2, ord=2) * norm(w1, ord=2) / 2
        assert bound == pytest.approx(closed.item(), rel=1e-7) and bound < 0.9 * plain


@pytest.mark.parametrize("variance", [1e-30, 1e-12, 1.0])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_batch_norm_is_folded(variance, kind):
    torch.manual_seed(0)
    shape = (2, 5, 5) if kind == "conv" else (6,)
    layer, norm = (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)) if kind == "conv" else (nn.Linear(6, 3), nn.BatchNorm1d(3))
    model = made(lambda m, x: torch.flatten(m.norm(m.layer(x)), 1), layer=layer, norm=norm)
    model.norm.running_var.mul_(0).add_(torch.tensor([variance, 1.0, 4.0]))
    model.norm.eps = 0.0
    chain = same(model, shape, 1e-8)
    assert type(chain[0]) in (FoldedConv2d, FoldedLinear) and len(chain) == 2
    truth = torch.linalg.matrix_norm(dense(model, shape), ord=2).item()
    assert truth * (1 - 1e-12) <= upper(model, shape).value <= truth * (1 + 1e-6)


def test_the_folded_bound_is_not_a_product():
    conv = nn.Conv2d(2, 2, 1, bias=False)
    conv.weight.data = torch.diag(torch.tensor([10.0, 0.1]))[..., None, None]
    model = made(lambda m, x: F.relu(m.norm(m.conv(x))), conv=conv, norm=nn.BatchNorm2d(2, eps=0.0))
    model.norm.running_var.copy_(torch.tensor([100.0, 0.01]))
    nn.init.ones_(model.norm.weight)
    assert upper(model, (2, 30, 30)).value == pytest.approx(1.0, rel=1e-6)


def test_constants_that_cancel_in_a_folded_bias_still_round():
    from robustbench_rkhs.certificates.rounding import logits_and_error

    linear = nn.Linear(2, 2)
    nn.init.constant_(linear.bias, 1e6)
    model = made(lambda m, x: m.norm(m.linear(x)), linear=linear, norm=nn.BatchNorm1d(2, eps=0.0))
    model.norm.running_mean.fill_(1e6)
    _, error = logits_and_error(steps(model, (2,)), torch.rand(3, 2, dtype=torch.float64))
    assert (error > 1e6 * 2.0**-53).all()


SLOPES = {
    "gelu": (nn.GELU(), 1.128904),
    "silu": (nn.SiLU(), 1.099839),
    "softplus": (nn.Softplus(), 1.0),
    "sharp softplus": (nn.Softplus(5.0), 1.0),
    "hardtanh": (nn.Hardtanh(-0.5, 2.0), 1.0),
    "relu6": (nn.ReLU6(), 1.0),
    "softsign": (nn.Softsign(), 1.0),
    "celu": (nn.CELU(0.3), 1.0),
    "selu": (nn.SELU(), 1.758099),
    "hardswish": (nn.Hardswish(), 1.5),
    "prelu": (nn.PReLU(init=-1.3), 1.3),
}


@pytest.mark.parametrize("layer, slope", SLOPES.values(), ids=SLOPES.keys())
def test_activation_bounds_are_their_steepest_slopes(layer, slope):
    from robustbench_rkhs.lipschitz.activations import slopes

    layer = layer.double()
    bound = upper(layer, (4,)).value
    t = torch.linspace(-8, 8, 160_001, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(layer(t).sum(), t)
    low, high = slopes(layer)
    assert low <= found.min() and found.max() <= high and bound == pytest.approx(max(abs(low), abs(high)))
    assert found.abs().max() <= bound <= slope * (1 + 2e-5) + 1e-14 and bound == pytest.approx(found.abs().max().item(), rel=2e-3)


@pytest.mark.parametrize("layer", [layer for layer, _ in SLOPES.values()], ids=SLOPES.keys())
def test_rounding_of_the_logits_holds_what_activations_err_by(layer):
    """float64 against the same formula in exact enough arithmetic: numpy's long doubles."""
    import numpy as np

    from robustbench_rkhs.certificates.rounding import logits_and_error

    x = torch.randn(200, 7, dtype=torch.float64) * 8
    wide = x.numpy().astype(np.longdouble)
    match layer:
        case nn.Softplus():
            truth = np.logaddexp(np.longdouble(0), layer.beta * wide) / layer.beta
        case nn.SiLU():
            truth = wide / (1 + np.exp(-wide))
        case nn.CELU():
            truth = np.where(wide > 0, wide, layer.alpha * np.expm1(np.minimum(wide, 0) / np.longdouble(layer.alpha)))
        case nn.SELU():
            alpha, scale = np.longdouble("1.6732632423543772848170429916717"), np.longdouble("1.0507009873554804934193349852946")
            truth = scale * np.where(wide > 0, wide, alpha * np.expm1(np.minimum(wide, 0)))
        case nn.GELU():
            truth = wide * np.vectorize(lambda t: math.erfc(-t / math.sqrt(2)) / 2)(x.numpy())
        case nn.PReLU():
            truth = np.where(wide > 0, wide, wide * np.longdouble(layer.weight.item()))
        case nn.Softsign():
            truth = wide / (1 + abs(wide))
        case nn.Hardswish():
            truth = wide * np.clip(wide + 3, 0, 6) / 6
        case _:
            truth = np.clip(wide, layer.min_val, layer.max_val)
    found, error = logits_and_error(steps(layer, (7,)), x.clone())
    away = np.sqrt(((found.numpy().astype(np.longdouble) - truth) ** 2).sum(1))
    assert (away.astype(float) <= error.numpy()).all() and error.max() < 1e-7


def test_rearrangements_are_isometries_and_pools_take_one_window():
    torch.manual_seed(0)
    for layer, shape in (
        (nn.PixelUnshuffle(2), (2, 4, 6)),
        (nn.PixelShuffle(2), (8, 2, 3)),
        (nn.ZeroPad2d((1, 0, 2, 1)), (2, 3, 3)),
        (nn.ZeroPad2d((-1, 0, 0, 2)), (2, 3, 3)),
    ):
        bound = upper(layer, shape)
        assert bound.value == pytest.approx(torch.linalg.matrix_norm(dense(layer, shape), ord=2).item()) == 1
        assert bound.shape == layer(torch.zeros(1, *shape)).shape[1:]
    assert upper(nn.AdaptiveMaxPool2d(1), (2, 3, 3))[:2] == (1.0, (2, 1, 1))
    assert upper(made(lambda m, x: F.adaptive_max_pool2d(x, 1).flatten(1)), (2, 3, 3))[:2] == (1.0, (2,))
    assert upper(made(lambda m, x: F.adaptive_avg_pool2d(x, (2, 1))), (1, 4, 3))[:2] == (pytest.approx(1 / math.sqrt(6)), (1, 2, 1))
    assert upper(made(lambda m, x: F.avg_pool2d(x, x.size()[2] // 2)), (1, 4, 4))[:2] == (pytest.approx(1 / 2), (1, 2, 2))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x):
        if self.calls >= 0:
            self.seen += 1
        return 2 * x


class Calls(nn.Module):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return x * self.calls


class Caller(nn.Module):
    def __call__(self, x):
        return 3 * super().__call__(x)

    def forward(self, x):
        return x


class Optional(nn.Module):
    def forward(self, x, other=None):
        return x if other is None else x + other


class Two(nn.Module):
    def forward(self, x, other):
        return x + other


class Weighing(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 5)


def _hooked(model, name):
    model.get_submodule(name).register_forward_hook(lambda *_: None)
    return model


def _replaced():
    model = made(lambda m, x: m.part(x), part=made(lambda m, x: x))
    model.part.forward = lambda x: 9 * x
    return model


def _back_in_training():
    model = made(lambda m, x: m.a(x), a=nn.BatchNorm1d(4))
    model.a.train()
    return model


def _inside(layer, training=False):
    return made(lambda m, x: m.block(x), block=nn.Sequential(nn.Identity(), layer)).train(training)


def _plain(function):
    return made(lambda m, x: function(x))


def _shared(m, x):
    y = F.sigmoid(x)
    return m.act(y - 0.5) + y


TYPED = {
    "normalised": lambda x: (x - 0.1307) / 0.3081,
    "divided": lambda x: x / 0.3081,
    "times": lambda x: x * 0.9,
    "times from the left": lambda x: 0.9 * x,
    "subtracted from": lambda x: 0.1 - x,
    "added": lambda x: x + 1e-9,
    "functions": lambda x: torch.div(torch.sub(x, 0.1), 0.7),
    "in place": lambda x: (x * 1.0).sub_(0.1).mul_(0.3),
}


@pytest.mark.parametrize("written", TYPED, ids=list(TYPED))
def test_a_number_in_a_forward_is_taken_as_it_is_typed(written):
    """By way of float32 it would differ from the float64 model by 1e-8, and be refused as another function."""
    model = made(lambda m, x: TYPED[written](m.fc(TYPED[written](x))), fc=nn.Linear(4, 3))
    same(model, (4,), 1e-13)
    x = torch.rand(2, 4)
    assert (MarginCertificate()(model, x, model(x).argmax(1), torch.arange(2)).radius > 0).all()


def _overwritten(m, x):
    y = x * 2
    return m.act(y) + y


def _overwritten_later(m, x):
    y = x + 1
    z = y.view(x.size(0), -1)
    z += torch.relu(m.linear(x) - 1e6)  # zero wherever one looks
    return y


ReLU = nn.ReLU
REFUSED = {
    "function": (_plain(torch.fft.fft2), (1, 4, 4), r"the model \(operation torch.fft.fft2\): no rule"),
    "inner function": (made(lambda m, x: m.a(x), a=_plain(torch.exp)), (4,), r"for a \(operation torch.exp\)"),
    "method": (_plain(lambda x: x.softmax(1)), (4,), "operation softmax"),
    "product": (_plain(lambda x: x * torch.sigmoid(x)), (4,), "operation operator.mul.*both depend"),
    "inverse": (_plain(lambda x: 1 / x), (4,), "constant divided"),
    "alpha": (_plain(lambda x: torch.add(x, x, alpha=3)), (4,), "options.*alpha"),
    "cat constant": (_plain(lambda x: torch.cat([x, torch.zeros(2, 1)], 1)), (4,), "constant beside"),
    "broadcast": (_plain(lambda x: x + x.mean((2, 3), keepdim=True)), (1, 4, 4), "adding images"),
    "growing": (_plain(lambda x: x * torch.ones(2, 1)), (3,), "one per channel"),
    "infinite constant": (_plain(lambda x: x / 0.0), (4,), "finite"),
    "batch mean": (_plain(lambda x: x - x.mean(0)), (4,), "over the batch"),
    "fixed batch": (_plain(lambda x: x.view(2, -1)), (1, 2, 2), "does not compute"),
    "batch in image": (_plain(lambda x: x.view(1, -1)), (4,), "batch"),
    "pad one": (_plain(lambda x: F.pad(x, (1, 1), value=1.0)), (1, 4, 4), "zeros around"),
    "response norm": (_inside(nn.LocalResponseNorm(2)), (2, 4, 4), r"block\.1 \(LocalResponseNorm\).*no bound is proved"),
    "running instance norm": (_inside(nn.InstanceNorm2d(2, track_running_stats=True)), (2, 4, 4), "running statistics"),
    "layer": (_inside(nn.Softmax(1)), (4,), r"block\.1 \(Softmax\): no rule"),
    "layer's own forward": (_inside(Weighing(4, 4)), (4,), r"block\.1 \(Weighing\).*overrides forward"),
    "softplus": (_inside(nn.Softplus(1.0, 1.0)), (4,), r"block\.1 \(Softplus\).*threshold"),
    "dropout": (_plain(lambda x: F.dropout(x, 0.5)), (4,), "operation torch.nn.functional.dropout.*random"),
    "training": (_inside(nn.Dropout(), True), (4,), "training mode"),
    "batch norm training": (_inside(nn.BatchNorm1d(4), True), (4,), "training mode"),
    "lone batch norm training": (_back_in_training(), (4,), r"a \(BatchNorm1d\).*eval"),
    "noise": (_plain(lambda x: x + torch.rand(1)), (4,), "does not compute"),
    "like noise": (_plain(lambda x: x + torch.randn_like(x)), (4,), "randn_like"),
    "branch": (_plain(lambda x: x if x.sum() > 0 else -x), (4,), r"the model \(Made\): its forward cannot be traced"),
    "value as number": (_plain(lambda x: x * x.sum().item()), (4,), "operation"),
    "two inputs": (Two().eval(), (4,), "cannot be traced.*other"),
    "two outputs": (_plain(lambda x: (x, x)), (4,), "one tensor of outputs"),
    "constant": (_plain(lambda x: torch.ones(2, 3)), (4,), "one tensor of outputs"),
    "hook": (_hooked(_inside(ReLU()), "block.1"), (4,), r"block\.1 \(ReLU\).*hooks"),
    "container hook": (_hooked(_inside(ReLU()), "block"), (4,), r"block \(Sequential\).*hooks"),
    "model hook": (_hooked(_inside(ReLU()), ""), (4,), r"the model \(Made\).*hooks"),
    "instance": (_replaced(), (4,), r"part \(Made\).*replaces forward"),
    "call": (made(lambda m, x: m.part(x), part=Caller()), (4,), r"part \(Caller\).*overrides __call__"),
    "buffer": (Counting().eval(), (4,), "changes seen"),
    "attribute": (Calls().eval(), (4,), "changes calls"),
    "overwritten": (made(_overwritten, act=nn.ReLU(inplace=True)), (4,), "overwrites"),
    "overwritten later": (made(_overwritten_later, linear=nn.Linear(4, 4)), (4,), "does not compute|overwrites"),
    "shape": (made(lambda m, x: m.a(x), a=nn.Linear(5, 2)), (4,), "does not take an input"),
    "nan": (made(lambda m, x: m.a(x / torch.tensor(math.nan)), a=nn.Linear(4, 2)), (4,), "NaN"),
    "in place in a sum": (
        Residual(nn.Sequential(nn.LeakyReLU(3.0, inplace=True), nn.Linear(4, 4)), nn.Identity()),
        (4,),
        "in place",
    ),
}


@pytest.mark.parametrize("model, shape, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_on_the_list_is_refused_by_name(model, shape, message):
    with pytest.raises(Uncertifiable, match=message) as found:
        upper(model, shape)
    assert "\n" not in str(found.value)


def test_what_is_compiled_is_refused_by_name():
    """Compiled here, not as the tests are collected: the import of the compiler takes seconds."""
    model = _inside(nn.ReLU())
    model.compile()
    with pytest.raises(Uncertifiable, match="_compiled_call_impl"):
        upper(model, (4,))
    with pytest.raises(Uncertifiable, match="compiled") as found:
        upper(torch.compile(_inside(ReLU())), (4,))
    assert "\n" not in str(found.value)


def test_what_looks_alike_but_is_fine_is_taken():
    assert upper(Optional().eval(), (4,)).value == 1
    assert upper(made(_shared, act=nn.ReLU(inplace=True)), (4,)).value == pytest.approx(0.5)
    shared = made(lambda m, x: m.a(F.relu(m.a(x))), a=nn.Linear(4, 4))
    same(shared, (4,))
    assert [step.path for step in steps(shared, (4,))] == ["a", "relu", "a~2"]
    assert upper(made(lambda m, x: m.a(m.a(F.max_pool2d(m.a(x), 2))), a=nn.Conv2d(2, 2, 3, padding=1)), (2, 8, 8)).value > 0
    weighted = parametrizations.spectral_norm(nn.Linear(4, 4))
    assert upper(made(lambda m, x: m.a(x) + 1, a=weighted), (4,)).value == pytest.approx(1, rel=0.2)
    assert upper(made(lambda m, x: m.a(x).tanh(), a=Sandwich(4, 3)), (4,)).value <= 1.001


def test_a_chain_of_known_layers_is_left_alone():
    chain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    assert [type(step.module) for step in steps(chain, (1, 4, 4))] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]


def test_the_certificate_takes_any_module_and_sees_every_change():
    torch.manual_seed(0)
    model = resnet()
    x = torch.rand(5, 3, 12, 12)
    with torch.no_grad():
        y = model(x).argmax(1)
    certificate = MarginCertificate()
    first = certificate.radii(model, x, y)
    assert (first > 0).all() and torch.equal(certificate.radii(model, x, y), first)
    with torch.no_grad():
        logits = model.double()(x.double())
    apart = pairs(model.float(), (3, 12, 12), 3)[y] + 1e300 * torch.eye(3).double()[y]
    gaps = logits.gather(1, y[:, None]) - logits
    torch.testing.assert_close(first, (gaps / apart).scatter(1, y[:, None], torch.inf).amin(1), rtol=1e-6, atol=0)
    changes = [
        lambda: model.layer1[1].bn2.weight.data.mul_(3),
        lambda: model.layer1[0].bn1.running_var.mul_(0.5),
        lambda: model.layer1[1].downsample[0].weight.data.mul_(2),
    ]
    for change in changes:
        change()
        with torch.no_grad():
            y = model(x).argmax(1)
        now = certificate.radii(model, x, y)
        assert not torch.equal(now, first)
        first = now
    model.run = lambda m, x: m.fc(torch.flatten(m.pool(m.layer1(m.conv1(x))), 1))  # other code, same weights
    with torch.no_grad():
        y = model(x).argmax(1)
    assert not torch.equal(certificate.radii(model, x, y), first)
    model.train()
    with pytest.raises(Uncertifiable, match="training"):
        certificate.radii(model, x, y)


OPERATIONS = ("linear", "norm", "relu", "gelu", "tanh", "scale", "shift", "sum", "difference", "cat", "split")


class Random(nn.Module):
    """A graph of allowed operations: each reads one or two of the values so far."""

    def __init__(self, program, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.program, self.layers, widths = program, nn.ModuleDict(), [3]
        for number, (kind, one, other) in enumerate(program):
            one, other = one % len(widths), other % len(widths)
            width = widths[one]
            if kind in ("linear", "split") or (kind in ("sum", "difference") and widths[one] != widths[other]):
                width = widths[other] if kind in ("sum", "difference") else 3
                self.layers[str(number)] = nn.Linear(widths[one], width)
            if kind == "norm":
                self.layers[str(number)] = norm = nn.BatchNorm1d(width)
                norm.running_var.uniform_(0.1, 2)
                norm.running_mean.normal_()
            widths.append(width + widths[other] if kind == "cat" else width)

    def forward(self, x):
        values = [x]
        for number, (kind, one, other) in enumerate(self.program):
            a, b = values[one % len(values)], values[other % len(values)]
            if str(number) in self.layers:
                a = self.layers[str(number)](a)
            match kind:
                case "relu":
                    a = F.relu(a)
                case "gelu":
                    a = F.gelu(a)
                case "tanh":
                    a = a.tanh()
                case "scale":
                    a = a * -1.5
                case "shift":
                    a = 0.5 + a
                case "sum":
                    a = a + b
                case "difference":
                    a = a - b
                case "cat":
                    a = torch.cat([a, b], dim=1)
            values.append(a)
        return values[-1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9),
    st.integers(0, 5),
)
def test_random_graphs_never_stretch_more_than_their_bound(program, seed):
    model = Random(program, seed).eval()
    bound = upper(model, (3,))
    same(model, (3,))
    double = model.double()
    with torch.no_grad():
        assert bound.shape == double(torch.zeros(1, 3).double()).shape[1:]
        x = torch.randn(200, 3, dtype=torch.float64) * 2
        step = torch.randn_like(x) * torch.logspace(-4, 0, 200)[:, None].double()
        ratio = (double(x + step) - double(x)).norm(dim=1) / step.norm(dim=1)
    assert ratio.max() <= bound.value * (1 + 1e-9) + 1e-9


def test_folded_rows_that_round_to_the_same_are_not_taken_for_the_same():
    """1.5 x (1 + 2^-52) rounds to 1.5 x's neighbour and so does another row: in real arithmetic the logits still differ."""
    linear = nn.Linear(1, 2, bias=False).double()
    linear.weight.data = torch.tensor([[1.0], [1.0 + 2.0**-52]], dtype=torch.float64)
    norm = nn.BatchNorm1d(2, eps=0.0).double()
    model = nn.Sequential(made(lambda m, x: m.norm(m.linear(x)), linear=linear, norm=norm)).eval()
    for tensor, value in ((norm.running_var, 1.0), (norm.weight.data, 1e-3), (norm.running_mean, 0.0), (norm.bias.data, 0.0)):
        tensor.fill_(value)
    norm.weight.data[0] *= 1 + 2.0**-52
    chain = chained(model, (1,))
    assert torch.equal(chain[0].weight[0], chain[0].weight[1])
    assert 0 < pairs(model, (1,), 2)[0, 1] < 1e-15


def test_products_out_of_range_are_not_folded():
    linear, norm = nn.Linear(2, 2).double(), nn.BatchNorm1d(2).double()
    model = made(lambda m, x: m.norm(m.linear(x)), linear=linear, norm=norm)
    linear.weight.data.fill_(1e-200)
    norm.weight.data.fill_(1e-200)
    assert len(chained(model, (2,))) == 2 and upper(model, (2,)).value > 0


def test_rounding_of_folded_weights_is_allowed_for():
    """Two logits whose folded rows agree to the last bit or two: the true difference is below the bound all the same."""
    generator = torch.Generator().manual_seed(0)
    below = 0
    for _ in range(40):
        linear, norm = nn.Linear(1, 2).double(), nn.BatchNorm1d(2).double().eval()
        with torch.no_grad():
            linear.weight.copy_(torch.rand(2, 1, generator=generator, dtype=torch.float64) + 0.5)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            scale = (norm.running_var + norm.eps).rsqrt()
            norm.weight.copy_(torch.stack([torch.tensor(1.0), linear.weight[0, 0] * scale[0] / (linear.weight[1, 0] * scale[1])]))
        with localcontext(Context(prec=60)):
            exact = [
                Decimal(w) * Decimal(g) / (Decimal(v) + Decimal(norm.eps)).sqrt()
                for w, g, v in zip(linear.weight.flatten().tolist(), norm.weight.tolist(), norm.running_var.tolist(), strict=True)
            ]
            truth = float(abs(exact[0] - exact[1]))
        model = Made(lambda self, x: self.norm(self.linear(x.flatten(1))), linear=linear, norm=norm).eval()
        chain = steps(model, (1,))
        assert isinstance(chain[-1].module, FoldedLinear)
        rows = chain[-1].module.weight
        below += abs(rows[0] - rows[1]).item() < truth
        for found in (pairs(model, (1,), 2), liplt_pairs(chain, (1,), 2), eclipse_pairs(chain, (1,), 2)):
            assert truth <= found[0, 1] < 1e-6
    assert below  # the rows at hand alone would have claimed too much
