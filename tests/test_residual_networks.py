"""Residual and small MNIST networks: published sizes, shapes, refusals; bounds of sums of branches against dense Jacobians."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dense
from torch import nn

from robustbench_rkhs.bounds import pairs, steps, upper
from robustbench_rkhs.layers.residual import Residual
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.networks import VGG, MNISTStable, ResNet
from robustbench_rkhs.nodes.node import UserError

CIFAR, MNIST = (3, 32, 32), (1, 28, 28)


@pytest.mark.parametrize(
    "node, shape, parameters",
    [(VGG(), CIFAR, 9_750_922), (ResNet(), CIFAR, 11_164_362), (MNISTStable(), MNIST, 1_553_984)],
    ids=["vgg", "resnet", "mnist_stable"],
)
def test_the_networks_have_their_published_size_and_give_logits(node, shape, parameters):
    channels = shape[0]
    model = node.model_copy(update={"mean": (0.4,) * channels, "std": (0.2,) * channels}).build(shape, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert not any(isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)) for m in model.modules())
    x = torch.rand(2, *shape, requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, 10) and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    torch.testing.assert_close(model.eval()(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)  # images do not mix


def test_resnet18_has_its_published_layers():
    model = ResNet().build(CIFAR, 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.bias is None for m in convolutions)
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 17 and sum(m.kernel_size == (1, 1) for m in convolutions) == 3
    blocks = [m for m in model if isinstance(m, Residual)]
    assert len(blocks) == 8 and sum(isinstance(b.shortcut, nn.Identity) for b in blocks) == 5
    assert [m.stride for m in convolutions if m.kernel_size == (1, 1)] == [(2, 2)] * 3
    assert model[-1].in_features == 512 and len([m for m in ResNet(depth=34).build(CIFAR, 10) if isinstance(m, Residual)]) == 16


def test_mnist_stable_averages_and_has_no_bias():
    model = MNISTStable().build(MNIST, 10)
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    assert sum(isinstance(m, nn.AvgPool2d) for m in model) == 4 and model[-1].in_features == 512
    last = [m for m in model if isinstance(m, nn.Conv2d)][-1]
    assert last.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    x = torch.rand(2, *MNIST)
    torch.testing.assert_close(model(3 * x), 3 * model(x), rtol=1e-4, atol=1e-5)  # positively homogeneous


@pytest.mark.parametrize("size", [(25, 25), (33, 27), (64, 64)])
def test_networks_take_larger_and_odd_images(size):
    for node, channels in ((ResNet(), 3), (MNISTStable(channels=(4, 6)), 1)):
        assert node.build((channels, *size), 7)(torch.rand(1, channels, *size)).shape == (1, 7)


@pytest.mark.parametrize(
    "node, shape, line",
    [
        (ResNet(), (3, 24, 32), "resnet needs images of at least 25x25 pixels, found shape .3, 24, 32."),
        (ResNet(), (3, 32), "resnet needs images"),
        (VGG(), (3, 31, 32), "vgg needs images of at least 32x32"),
        (VGG(), (784,), "vgg needs images"),
        (MNISTStable(), (1, 15, 28), "mnist_stable needs images of at least 16x16 pixels, found shape .1, 15, 28."),
        (MNISTStable(), (784,), "mnist_stable needs images"),
        (MNISTStable(mean=(0.1, 0.2), std=(0.3, 0.3)), MNIST, "expected a mean and std for each channel"),
    ],
)
def test_networks_refuse_what_they_cannot_take(node, shape, line):
    with pytest.raises(UserError, match=line) as caught:
        node.build(shape, 10)
    assert "\n" not in str(caught.value)


def test_the_smallest_images_they_name_are_taken():
    assert ResNet().build((1, 25, 25), 3)(torch.rand(1, 1, 25, 25)).shape == (1, 3)
    assert MNISTStable().build((1, 16, 16), 3)(torch.rand(1, 1, 16, 16)).shape == (1, 3)


# bounds


def block(inputs, outputs, stride, activation=None):
    body = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        activation or nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
    )
    same = stride == 1 and inputs == outputs
    return Residual(body, nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False))


def steepest(model, shape, images=24):
    """The largest Jacobian norm over some images: a lower bound of the Lipschitz constant."""
    x = torch.randn(images, *shape).double()
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda z: model(z[None])[0].flatten(), one) for one in x])
    return torch.linalg.matrix_norm(jacobians.flatten(2), ord=2).max().item()


@settings(max_examples=15)
@given(st.integers(0, 50), st.sampled_from([(2, 2, 1), (2, 3, 1), (2, 3, 2)]), st.sampled_from([(4, 4), (5, 3)]))
def test_no_jacobian_exceeds_the_bound_of_a_sum(seed, plan, size):
    torch.manual_seed(seed)
    inputs, outputs, stride = plan
    model = nn.Sequential(block(inputs, outputs, stride), nn.ReLU(), block(outputs, outputs, 1)).double()
    shape = (inputs, *size)
    bound = upper(model, shape)
    assert bound.shape == tuple(model(torch.zeros(1, *shape).double()).shape[1:])
    assert 0 < steepest(model, shape) <= bound.value


@settings(max_examples=15)
@given(st.integers(0, 50), st.floats(1e-3, 1e3))
def test_a_sum_of_affine_branches_is_the_norm_of_the_sum(seed, scale):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 2, 1, bias=False))
    model = Residual(body, nn.Identity()).double()
    with torch.no_grad():
        body[0].weight.mul_(scale)
    shape = (2, 4, 3)
    branch = torch.linalg.matrix_norm(dense(body, shape), ord=2).item()
    truth = torch.linalg.matrix_norm(dense(model, shape), ord=2).item()
    bound = upper(model, shape).value
    assert truth <= bound <= (1 + branch) * (1 + 1e-6)
    assert bound == pytest.approx(truth, rel=1e-6)  # so small that the sum is one matrix


def test_the_bound_is_reached_where_branches_agree():
    """x + x, and x + W x for a symmetric positive W: the sum of the norms is the norm of the sum."""
    assert upper(Residual(nn.Identity(), nn.Identity()), (3, 2, 2)).value == pytest.approx(2, rel=1e-12)
    twice = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        twice.weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5])))
    assert upper(Residual(twice, nn.Identity()), (4,)).value == pytest.approx(4, rel=1e-9)


def test_pairs_of_logits_of_a_tiny_resnet_hold():
    torch.manual_seed(0)
    model = nn.Sequential(block(1, 2, 1), nn.ReLU(), block(2, 3, 2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)).double()
    shape, x = (1, 4, 4), torch.randn(40, 1, 4, 4).double()
    bounds = pairs(model, shape, 3)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda z: model(z[None])[0], one) for one in x]).flatten(2)
    for a in range(3):
        for b in range(3):
            assert (jacobians[:, a] - jacobians[:, b]).norm(dim=1).max() <= bounds[a, b] + 1e-12
    (inside,) = [step for step in steps(model, shape) if step.path == "2"]
    assert len(inside.branches) == 2 and inside.bound.shape == (3, 2, 2)


def test_branches_of_different_shape_and_unknown_layers_are_refused_by_name():
    odd = nn.Sequential(Residual(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 1, stride=2)))
    with pytest.raises(Uncertifiable, match="expected branches of one shape"):
        upper(odd, (1, 4, 4))
    with pytest.raises(Uncertifiable, match="Softmax"):
        upper(nn.Sequential(block(1, 1, 1, activation=nn.Softmax(1))), (1, 4, 4))
