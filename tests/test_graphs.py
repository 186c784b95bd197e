"""Any module as a chain of layers: the same outputs, bounds above every slope found, and refusals that say where and what."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.layers import Concatenate, Residual, Sandwich, Scale
from robustbench_rkhs.lipschitz import Uncertifiable, pairs, steps, upper
from robustbench_rkhs.lipschitz.chains import joined, merged
from robustbench_rkhs.lipschitz.folding import FoldedConv2d, FoldedLinear
from robustbench_rkhs.lipschitz.graphs import chained


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


def steepest(model, shape, climbs=15, starts=6):
    """The largest Jacobian norm at random points, and on the way uphill from them: no bound may be below it."""
    torch.manual_seed(0)
    double, largest = model.double(), 0.0
    x = torch.randn(starts, *shape, dtype=torch.float64) * torch.logspace(-1, 0.7, starts).double().view(-1, *[1] * len(shape))
    v = torch.randn_like(x)
    for _ in range(climbs):
        v = v / v.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
        _, u = torch.func.jvp(double, (x,), (v,))
        largest = max(largest, u.flatten(1).norm(dim=1).max().item())
        _, back = torch.func.vjp(double, x)
        v = back(u)[0]
        x = x + 0.05 * torch.randn_like(x)
        v = v + 1e-30
    model.float()
    return largest


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
    assert upper(twice, (5,)) == (pytest.approx(math.sqrt(2)), (10,)) and upper(twice, (5,)).value >= math.sqrt(2)
    assert upper(twice, (2, 40, 40)).value == pytest.approx(math.sqrt(2))  # too large for its matrix
    bent = Concatenate([nn.Tanh(), nn.Sequential(Scale(3.0), nn.ReLU()), nn.Identity()])
    bound = upper(bent, (2, 3, 3))
    assert bound == (pytest.approx(math.sqrt(11)), (6, 3, 3)) and bound.value >= steepest(nn.Sequential(bent), (2, 3, 3)) > 3
    x = torch.full((1, 1), 1e-3, dtype=torch.float64)
    assert (bent(x) - bent(2 * x)).norm() / x.norm() == pytest.approx(math.sqrt(11), rel=1e-5)
    with pytest.raises(Uncertifiable, match="fit but for their channels"):
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
    model.out = nn.Linear(5, 2)
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
    assert steepest(block, (6,), 40) <= bound <= plain * (1 + 1e-12) and bound == joined(chains, (6,)).value
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
    nn.init.constant_(linear.bias, 1e15)
    model = made(lambda m, x: m.norm(m.linear(x)), linear=linear, norm=nn.BatchNorm1d(2, eps=0.0))
    model.norm.running_mean.fill_(1e15)
    _, error = logits_and_error(steps(model, (2,)), torch.rand(3, 2, dtype=torch.float64))
    assert (error > 1e15 * 2.0**-53).all()
