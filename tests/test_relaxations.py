"""Bounds over a ball: never above the truth, exact where that has a closed form, and as tight as they say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dense
from torch import nn

from robustbench_rkhs.layers import GroupSort, MaxMin, Normalize, Residual, Scale
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.relaxations import ball, crown_margins, interval_margins, trace

BOUNDS = {"interval": interval_margins, "crown": crown_margins}


def block():
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1, bias=False))
    return Residual(body, nn.Identity())


def statistics(network):
    """BatchNorm with statistics and scales of its own, some of them negative."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


def lengthened():
    halves = Residual(nn.Conv2d(3, 4, 1, 2, bias=False), nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(0.2)))
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), halves, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


NETWORKS = {  # on images of (1, 6, 6); a new rule adds a line here
    "affine": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4)),
    "leaky": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.LeakyReLU(0.3), nn.Linear(9, 4), nn.LeakyReLU(0.1)),
    "convolutions": lambda: nn.Sequential(
        Normalize([0.3], [0.4]),
        nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, (3, 2), (2, 1), (1, 0), groups=2), nn.ReLU()),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, 3),
    ),
    "circular": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 3)
    ),
    "reflected": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, padding=2, padding_mode="reflect", dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    ),
    "batchnorm": lambda: nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 2, 2, padding="same"), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)
    ),
    "batchnorm of features": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5), nn.ReLU(), Scale(-2.0), nn.Linear(5, 3), nn.Identity()
    ),
    "residual": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), block(), nn.ReLU(), block(), nn.Flatten(), nn.Linear(48, 3)),
    "residual, shortened": lengthened,
    "residual first": lambda: nn.Sequential(
        Residual(nn.Conv2d(1, 1, 3, padding=1), nn.Identity()), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ),
    "max-pool": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    ),
    "max-pool first, hanging over": lambda: nn.Sequential(
        nn.MaxPool2d((2, 3), (2, 2), ceil_mode=True), nn.Flatten(), nn.Linear(9, 3)
    ),
    "max-pool, dilated": lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2, 1, dilation=2), nn.Flatten(), nn.Linear(32, 3)),
    "sorted": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), MaxMin(), nn.Conv2d(4, 4, 2), GroupSort(2), nn.Flatten(), nn.Linear(36, 3)),
    "smooth": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ELU(0.7), nn.Linear(8, 3)
    ),
    "sequence": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(1, 4, 5, 2, 2, padding_mode="circular"), nn.ReLU(), nn.AvgPool1d(3), nn.Flatten(), nn.Linear(24, 3)
    ),
    "relu first": lambda: nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(9, 3)),
}
POOLED = nn.MaxPool2d(3, 2, 1)


def network(name, seed, dtype=torch.float64):
    torch.manual_seed(seed)
    return statistics(NETWORKS[name]()).to(dtype).eval()


def images(count=3, seed=0, dtype=torch.float64):
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def samples(x, eps, norm, box, count=60, seed=0):
    """Points of each ball, most of them on its boundary: (count, batch, *image)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *x.shape, generator=generator, dtype=x.dtype)
    if norm == "linf":
        moved = x + eps * noise.sign()
        return moved.clamp(0, 1) if box == "unit" else moved
    moved = x + eps * noise / noise.flatten(2).norm(dim=2)[..., None, None, None]
    return moved.clamp(0, 1) if box == "unit" else moved  # towards x, which lies in the box: still in the ball


def margins(model, x, y):
    logits = model(x)
    return logits.gather(1, y[:, None]) - logits


def worst(model, x, y, eps, norm, box, steps=30):
    """The lowest margins that sampling and, class by class, gradient descent reach in the ball."""
    points = samples(x, eps, norm, box)
    with torch.no_grad():
        found = torch.stack([margins(model, point, y) for point in points]).amin(0)
    for k in range(found.shape[1]):
        moved = x.clone()
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            value = margins(model, moved, y)[:, k]
            (gradient,) = torch.autograd.grad(value.sum(), moved)
            if norm == "linf":
                moved = moved - eps * gradient.sign() / 2
                moved = x + (moved - x).clamp(-eps, eps)
            else:
                length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
                offset = moved - eps * gradient / length - x
                moved = x + offset * (eps / offset.flatten(1).norm(dim=1).clamp_min(eps))[:, None, None, None]
            if box == "unit":
                moved = moved.clamp(0, 1)
            found[:, k] = torch.minimum(found[:, k], margins(model, moved, y)[:, k].detach())
    return found


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=12)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    box=st.sampled_from(["unit", "none"]),
    eps=st.floats(1e-3, 1.0),
    seed=st.integers(0, 5),
)
def test_no_margin_in_the_ball_is_below_its_bounds(name, norm, box, eps, seed):
    model, x = network(name, seed), images(seed=seed)
    y = model(x).argmax(1)
    found = trace(model, ball(x, eps, norm, box))
    lowest = worst(model, x, y, eps, norm, box, steps=4)
    for which, bounds in BOUNDS.items():
        bound = bounds(found, y)
        assert (bound <= lowest + 1e-9).all(), which
        assert torch.equal(bound.gather(1, y[:, None]), torch.zeros(3, 1, dtype=bound.dtype))


@pytest.mark.parametrize("name", [*NETWORKS, "pooled"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_what_comes_out_of_every_layer_lies_in_its_region(name, norm):
    model = network("circular", 0) if name == "pooled" else network(name, 0)
    if name == "pooled":
        model = nn.Sequential(*model[:2], POOLED, nn.Flatten(), nn.Linear(27, 3).double())
    x = images()
    found = trace(model, ball(x, 0.3, norm))
    outputs = [step.before for step in found.steps] + [found.after]
    layers = [step.module for step in found.steps]
    for point in samples(x, 0.3, norm, "unit", count=50):
        for region, layer in zip(outputs, [*layers, None], strict=True):
            assert (point >= region.lower - 1e-9).all() and (point <= region.upper + 1e-9).all()
            if region.round:
                assert (((point - region.center) / region.radius).flatten(1).norm(dim=1) <= 1 + 1e-9).all()
            if layer is not None:
                point = layer(point).detach()
    assert name == "pooled" or len(found.steps) > 1


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS.keys())
def test_the_bounds_of_an_affine_model_are_exact(norm, bounds):
    torch.manual_seed(0)
    model = nn.Sequential(
        Normalize([0.3], [0.25]), nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 4)
    )
    model = statistics(model).double().eval()
    x, y = 0.4 + 0.2 * images(), torch.tensor([0, 3, 1])
    matrix = dense(model, (1, 6, 6))
    rows = matrix[y][:, None] - matrix
    wanted = margins(model, x, y) - 0.1 * rows.norm(p=2 if norm == "l2" else 1, dim=2)
    torch.testing.assert_close(bounds(trace(model, ball(x, 0.1, norm)), y), wanted)


CONVOLUTIONS = {
    "padding": dict(kernel_size=3, padding=1),
    "stride": dict(kernel_size=3, stride=2, padding=1),
    "uneven": dict(kernel_size=(3, 2), stride=(2, 1), padding=(0, 1), bias=False),
    "dilation": dict(kernel_size=2, dilation=3, padding=2),
    "same": dict(kernel_size=4, padding="same"),
    "circular": dict(kernel_size=3, padding=1, padding_mode="circular"),
    "circular, stride": dict(kernel_size=5, stride=3, padding=2, padding_mode="circular"),
    "replicated": dict(kernel_size=3, padding=1, padding_mode="replicate"),
    "groups": dict(kernel_size=3, groups=2, padding=1),
}


@pytest.mark.parametrize("fields", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("side", [5, 6])
def test_a_convolution_is_bounded_by_the_rows_of_its_matrix(fields, norm, side):
    torch.manual_seed(1)
    layer = nn.Conv2d(2, 4, **fields).double()
    x = torch.rand(2, 2, side, side + 1, dtype=torch.float64)
    matrix = dense(layer, x.shape[1:])
    after = trace(layer, ball(x, 0.2, norm, "none")).after
    exact = 0.2 * matrix.norm(p=2 if norm == "l2" else 1, dim=1).expand(2, -1)
    folded = fields.get("padding_mode") == "replicate"  # its edges are read more than once: sound, not exact
    if folded:
        assert (after.radius.flatten(1) >= exact - 1e-12).all()
    else:
        torch.testing.assert_close(after.radius.flatten(1), exact)
    torch.testing.assert_close(after.center, layer(x))
    model = nn.Sequential(layer, nn.Flatten())
    y, classes = torch.tensor([0, 1]), len(matrix)
    rows = matrix[y][:, None] - matrix[None].expand(2, classes, -1)
    wanted = margins(model, x, y) - 0.2 * rows.norm(p=2 if norm == "l2" else 1, dim=2)
    torch.testing.assert_close(crown_margins(trace(model, ball(x, 0.2, norm, "none")), y), wanted)


def test_a_window_wider_than_a_circular_image_is_still_sound():
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular").double()
    nn.init.ones_(layer.weight)
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    exact = dense(layer, (1, 2, 2)).norm(dim=1)
    assert exact.min() > layer.weight.norm()  # the rows are longer than the kernel
    assert (trace(layer, ball(x, 1.0, "l2", "none")).after.radius.flatten() >= exact).all()


def test_one_relu_is_bounded_by_its_own_minimum():
    """f_0 - f_1 = relu(x - 1/2) on [1/2 - r, 1/2 + r]: CROWN's lower line is 0 or z, both exact at one end."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), ([[1.0]], [-0.5], [[1.0], [0.0]]), strict=True):
            parameter.copy_(torch.tensor(value))
    x, y = torch.tensor([[0.4], [0.6]], dtype=torch.float64), torch.tensor([0, 1])
    found = trace(model, ball(x, 0.3, "linf"))
    assert interval_margins(found, y).tolist() == [[0, 0], [pytest.approx(-0.4), 0]]
    # at 0.4: [-0.4, 0.2], lower line 0. At 0.6 the label is 1: -relu over [-0.2, 0.4] is above -(0.4 / 0.6) (z + 0.2) >= -0.4
    assert crown_margins(found, y)[0].tolist() == [0, 0]
    assert crown_margins(found, y)[1, 0].item() == pytest.approx(-0.4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_crown_is_tighter_than_intervals_in_the_mean(norm):
    for name in ("mlp", "convolutions", "residual"):
        model, x = network(name, 0), images(16)
        y = model(x).argmax(1)
        found = trace(model, ball(x, 0.05, norm))
        assert crown_margins(found, y).mean() >= interval_margins(found, y).mean(), name


def test_the_pixel_box_cuts_the_linf_ball():
    x = torch.tensor([[[[0.0, 0.5, 0.95]]]])
    region = ball(x, 0.1, "linf")
    torch.testing.assert_close(region.lower, torch.tensor([[[[0.0, 0.4, 0.85]]]]))
    torch.testing.assert_close(region.upper, torch.tensor([[[[0.1, 0.6, 1.0]]]]))
    torch.testing.assert_close(ball(x, 0.1, "linf", "none").radius, torch.full_like(x, 0.1))


def test_each_image_may_have_a_radius_of_its_own():
    model, x = network("mlp", 0), images()
    y, radii = model(x).argmax(1), torch.tensor([0.01, 0.1, 0.3])
    for norm in ("l2", "linf"):
        together = crown_margins(trace(model, ball(x, radii, norm)), y)
        alone = [crown_margins(trace(model, ball(x[i : i + 1], radii[i].item(), norm)), y[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", NETWORKS)
def test_at_radius_zero_the_bounds_are_the_margins_and_have_their_gradient(name, norm):
    model, x = network(name, 1), images()
    y = torch.tensor([0, 1, 2])
    wanted = torch.autograd.grad(margins(model, x, y).square().sum(), list(model.parameters()), allow_unused=True)
    for bounds in BOUNDS.values():
        found = bounds(trace(model, ball(x, 0.0, norm)), y)
        torch.testing.assert_close(found, margins(model, x, y))
        gradients = torch.autograd.grad(found.square().sum(), list(model.parameters()), allow_unused=True)
        for ours, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS.keys())
def test_gradients_of_the_bounds_are_finite_differences(bounds, norm):
    model, x = network("convolutions", 0), images()
    y, region = torch.tensor([0, 1, 2]), ball(images(), 0.07, norm)
    parameters = dict(model.named_parameters())
    total = bounds(trace(model, region), y).sum()
    for name, gradient in zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True):
        direction = torch.randn_like(gradient)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameters[name].add_(sign * 1e-6 * direction)
                ends.append(bounds(trace(model, region), y).sum())
                parameters[name].sub_(sign * 1e-6 * direction)
        difference = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)
    assert x.grad is None


def test_bounds_are_of_the_model_in_eval_mode_and_leave_it_as_it_is():
    model, x = network("batchnorm", 0), images()
    y = torch.tensor([0, 1, 2])
    wanted = interval_margins(trace(model, ball(x, 0.1, "linf")), y)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(interval_margins(trace(model, ball(x, 0.1, "linf")), y), wanted)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bounds_stay_float32_in_half_precision():
    model, x = network("convolutions", 0, torch.float32), images(dtype=torch.float32)
    y = torch.tensor([0, 1, 2])
    for bounds in BOUNDS.values():
        wanted = bounds(trace(model, ball(x, 0.1, "l2")), y)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(bounds(trace(model, ball(x, 0.1, "l2")), y), wanted)
        halved = bounds(trace(model, ball(x.to(torch.bfloat16), 0.1, "l2")), y)
        assert halved.dtype == torch.float32 and (halved - wanted).abs().max() < 0.2


class Doubled(nn.Linear):
    """A layer that is no longer the affine map its class stands for."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = nn.Linear(36, 3)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


REFUSED = {
    "unknown": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Tanhshrink()), "layer '2' \\(Tanhshrink\\): no rule"),
    "nested": (lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.GLU())), "layer '1.0' \\(GLU\\)"),
    "in a branch": (lambda: nn.Sequential(Residual(nn.Tanhshrink(), nn.Identity()), nn.Flatten()), "'0.body' \\(Tanhshrink\\)"),
    "overridden": (lambda: nn.Sequential(nn.Flatten(), Doubled(36, 3)), "'1' \\(Doubled\\): it overrides forward of Linear"),
    "hooked": (lambda: nn.Sequential(nn.Flatten(), hooked()), "it carries hooks"),
    "no statistics": (lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)), "no running statistics"),
    "flattened batch": (lambda: nn.Sequential(nn.Flatten(0)), "flattens the batch"),
    "not Sequential": (lambda: nn.Bilinear(3, 3, 3), "layer 'model' \\(Bilinear\\)"),
}


@pytest.mark.parametrize("build, line", REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_bounds_is_named(build, line):
    with pytest.raises(UserError, match=line):
        trace(build(), ball(images(dtype=torch.float32), 0.1, "linf"))


def test_a_layer_that_is_in_the_chain_twice_is_walked_through_twice():
    torch.manual_seed(0)
    layer, x, y = nn.Linear(4, 4).double(), torch.rand(3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    relu = nn.ReLU()
    for model in (nn.Sequential(layer, relu, layer, relu, layer), Residual(layer, layer)):
        found = trace(model, ball(x, 0.0, "linf"))
        torch.testing.assert_close(found.after.center, model(x))
        for bounds in BOUNDS.values():
            torch.testing.assert_close(bounds(found, y), margins(model, x, y))
