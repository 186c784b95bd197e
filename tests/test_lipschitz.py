"""Bounds against dense matrices, closed forms and definitions; and the refusal of whatever is not proved."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from robustbench_rkhs.bounds import pairs, steps, upper
from robustbench_rkhs.layers import MaxMin, Normalize, Sandwich, SandwichLinear, Scale
from robustbench_rkhs.lipschitz import Uncertifiable, convolution
from robustbench_rkhs.lipschitz.convolution import Axis, operator_norm


def dense(module, shape):
    """The matrix of an affine map, column by column, from its definition."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        double = module.double().eval()
        return (double(basis) - double(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T


def exact(module, shape):
    return torch.linalg.matrix_norm(dense(module, shape), ord=2).item()


def torus_norm(conv, shape):
    """The bound without the dense norm, which would replace it at sizes as small as these."""
    with mock.patch.object(convolution, "DENSE_SIZE", 0):
        return steps(conv, shape)[0].bound


convolutions = st.fixed_dictionaries(
    {
        "inputs": st.integers(1, 2),
        "outputs": st.integers(1, 3),
        "groups": st.integers(1, 2),
        "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 4), st.integers(1, 3)),
        "dilation": st.tuples(st.integers(1, 3), st.integers(1, 2)),
        "padding": st.one_of(st.tuples(st.integers(0, 5), st.integers(0, 4)), st.sampled_from(["same", "valid"])),
        "mode": st.sampled_from(["zeros", "zeros", "circular"]),
        "size": st.tuples(st.integers(1, 7), st.integers(1, 6)),
        "seed": st.integers(0, 10),
    }
)


@settings(max_examples=400, deadline=None)
@given(convolutions)
def test_convolution_bounds_the_dense_operator(options):
    if options["padding"] == "same":
        options["stride"] = (1, 1)
    torch.manual_seed(options["seed"])
    groups = options["groups"]
    conv = nn.Conv2d(
        options["inputs"] * groups,
        options["outputs"] * groups,
        options["kernel"],
        options["stride"],
        options["padding"],
        options["dilation"],
        groups,
        padding_mode=options["mode"],
    )
    if options["seed"] == 0:
        nn.init.ones_(conv.weight)
    shape = (options["inputs"] * groups, *options["size"])
    try:
        truth = exact(conv, shape)
    except RuntimeError:  # torch cannot run it: no output, or a wrap around more than once
        with pytest.raises(Uncertifiable):
            upper(conv, shape)
        return
    bound = torus_norm(conv, shape)
    assert bound.shape == conv(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    assert truth <= bound.value
    assert truth <= upper(conv, shape).value <= truth * (1 + 1e-6) + 1e-10


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_torus_bound_is_tight_at_usual_sizes(kernel, stride):
    torch.manual_seed(kernel)
    conv = nn.Conv2d(3, 4, kernel, stride, kernel // 2)
    truth, bound = exact(conv, (3, 12, 12)), torus_norm(conv, (3, 12, 12)).value
    assert truth <= bound <= 1.12 * truth


@pytest.mark.parametrize("side", [4, 5, 8])
def test_circular_convolution_is_exact(side):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    assert torus_norm(conv, (2, side, side)).value == pytest.approx(exact(conv, (2, side, side)), rel=1e-8)


def test_zero_padding_is_not_the_circular_operator():
    """kernel [-1, 0, 1] on six points: exact 2 cos(pi / 7) = 1.8019, the circular operator of six points has 1.7321."""
    conv = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    conv.weight.data = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)
    truth = 2 * math.cos(math.pi / 7)
    assert exact(conv, (1, 1, 6)) == pytest.approx(truth)
    assert torus_norm(conv, (1, 1, 6)).value >= truth and upper(conv, (1, 1, 6)).value == pytest.approx(truth)


def test_constant_kernel_has_its_operator_norm_not_that_of_the_reshaped_matrix():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    assert torch.linalg.matrix_norm(conv.weight.detach().flatten(1), ord=2) == pytest.approx(3.0)
    assert upper(conv, (1, 64, 64)).value == pytest.approx(9.0, rel=0.01)
    circular = nn.Conv2d(1, 1, 3, padding=1, bias=False, padding_mode="circular")
    circular.weight.data = conv.weight.data
    assert upper(circular, (1, 8, 8)).value == pytest.approx(9.0, rel=1e-7)


def test_groups_count_by_their_largest_not_their_product():
    conv = nn.Conv2d(2, 2, 1, groups=2, bias=False)
    conv.weight.data = torch.tensor([3.5, 0.13]).view(2, 1, 1, 1)
    assert upper(conv, (2, 4, 4)).value == pytest.approx(3.5)
    assert torus_norm(conv, (2, 40, 40)).value == pytest.approx(3.5)


def test_largest_direction_orthogonal_to_all_ones():
    """Power iteration from all ones sees nothing of this matrix but 0.125."""
    size = 64
    row = torch.ones(size) / size**0.5
    other = torch.cat([torch.ones(size // 2), -torch.ones(size // 2)]) / size**0.5
    linear = nn.Linear(size, size, bias=False)
    linear.weight.data = 0.125 * torch.outer(row, row) + 8 * torch.outer(other, other)
    assert upper(linear, (size,)).value == pytest.approx(8, rel=1e-6)


def test_many_frequencies_are_taken_in_parts(monkeypatch):
    weight = torch.randn(1, 3, 2, 3, 3, dtype=torch.float64)
    axes = (Axis(7, 3, 2, 1, 1, 1), Axis(9, 3, 1, 2, 0, 2))
    whole = operator_norm(weight, axes)
    monkeypatch.setattr("robustbench_rkhs.lipschitz.convolution.CHUNK", 5)
    assert operator_norm(weight, axes) == pytest.approx(whole, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(1, 8), st.integers(1, 7), st.booleans())
def test_average_pool_bounds_the_dense_operator(kernel, stride, padding, height, width, override):
    assume(padding <= kernel // 2 and min(height, width) + 2 * padding >= kernel)
    pool = nn.AvgPool2d((kernel, 1), stride, (padding, 0), divisor_override=3 if override else None)
    truth, bound = exact(pool, (2, height, width)), torus_norm(pool, (2, height, width))
    assert truth <= bound.value and upper(pool, (2, height, width)).value <= truth * (1 + 1e-6)
    assert bound.shape == pool(torch.zeros(1, 2, height, width)).shape[1:]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(56, 56, 0), (2, 2, 0), (3, 2, 1), (3, 1, 1), (7, 7, 0)])
def test_average_pools_of_large_images_cost_no_more_than_one_axis(kernel, stride, padding, monkeypatch):
    """The windows of both axes are independent, so that the norm is the product of two small ones, however large the image."""
    matrix = convolution.operator_matrix

    def small(weight, axes):
        assert 1 in (axes[0].size, axes[1].size), "an operator on the whole image"
        return matrix(weight, axes)

    monkeypatch.setattr(convolution, "operator_matrix", small)
    found = upper(nn.AvgPool2d(kernel, stride, padding), (3, 224, 224))
    line = nn.AvgPool1d(kernel, stride, padding)(torch.eye(224, dtype=torch.float64)[:, None])[:, 0]
    truth = torch.linalg.matrix_norm(line, 2).item() ** 2
    assert truth * (1 - 1e-12) <= found.value <= truth * (1 + 1e-9) and found.shape == (3, line.shape[1], line.shape[1])


def test_pools_in_closed_form():
    assert upper(nn.AvgPool2d((2, 3)), (3, 8, 9)).value == pytest.approx(1 / math.sqrt(6))
    assert upper(nn.AdaptiveAvgPool2d(1), (3, 5, 7))[:2] == (pytest.approx(1 / math.sqrt(35)), (3, 1, 1))
    assert upper(nn.MaxPool2d(2), (3, 8, 8))[:2] == (1.0, (3, 4, 4))
    assert upper(nn.MaxPool2d(3, 2, 1), (3, 8, 8))[:2] == (pytest.approx(2), (3, 4, 4))


def test_overlapping_max_pool_attains_its_bound():
    """A single pixel in four windows of the 3/2 pool: the stem that many libraries call 1-Lipschitz has ratio 2."""
    x = torch.zeros(1, 1, 8, 8)
    x[..., 3, 3] = 1
    ratio = (nn.MaxPool2d(3, 2, 1)(x).norm() / x.norm()).item()
    assert ratio == 2 <= upper(nn.MaxPool2d(3, 2, 1), (1, 8, 8)).value


def test_normalisation_counts_by_its_smallest_std():
    """Behind a kink no matrix is merged: the bound is the rule's own."""
    model = nn.Sequential(nn.ReLU(), Normalize((0.5, 0.5), (0.5, 0.25)), nn.ReLU())
    x = torch.zeros(1, 2, 3, 3)
    x[0, 1] = 0.9
    other = x.clone()
    other[0, 1, 1, 1] = 1.0
    ratio = ((model(x) - model(other)).norm() / (x - other).norm()).item()
    assert ratio == pytest.approx(4, rel=1e-5) and upper(model, (2, 3, 3)).value == pytest.approx(4)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 8),
    st.integers(0, 9),
)
def test_max_pool_never_expands_more_than_its_bound(kernel, stride, padding, dilation, ceil, side, seed):
    assume(padding <= kernel // 2 and dilation * (kernel - 1) + 1 <= side + 2 * padding and not (padding and dilation > 1))
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    torch.manual_seed(seed)
    spikes = torch.eye(side * side).view(-1, 1, side, side)  # one pixel on black: counts its windows
    x = torch.cat([spikes, torch.randn(20, 1, side, side)])
    other = torch.cat([torch.zeros_like(spikes), torch.randn(20, 1, side, side)])
    bound = upper(pool, (1, side, side))
    ratio = (pool(x) - pool(other)).flatten(1).norm(dim=1) / (x - other).flatten(1).norm(dim=1)
    assert ratio.max() <= bound.value * (1 + 1e-6)
    assert bound.shape == pool(x).shape[1:]


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.LeakyReLU(0.3), nn.LeakyReLU(-2.5), nn.Tanh(), nn.Sigmoid(), nn.ELU(), nn.ELU(2.0), nn.Identity()],
    ids=str,
)
def test_activation_bound_is_its_steepest_slope(layer):
    t = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    slopes = (layer(t[1:]) - layer(t[:-1])).abs() / (t[1] - t[0])
    bound = upper(layer, (4,)).value
    assert slopes.max().item() == pytest.approx(bound, rel=2e-3) and slopes.max() <= bound * (1 + 1e-9)


def test_sequence_multiplies_and_names_shapes():
    torch.manual_seed(0)
    model = nn.Sequential(
        Normalize((0.5, 0.5), (0.5, 0.25)), nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), nn.Flatten(), nn.Linear(12, 5)
    ).eval()
    parts = [exact(model[:1], (2, 4, 4)), exact(model[1][0], (2, 4, 4)), exact(model[3], (12,))]
    bound = upper(model.float(), (2, 4, 4))
    assert bound.shape == (5,) and bound.value <= math.prod(parts) * (1 + 1e-6)
    joint = exact(nn.Sequential(model[0], model[1][0]), (2, 4, 4)) * parts[2]  # affine layers in a row: one matrix
    assert bound.value == pytest.approx(joint, rel=1e-6) and joint < math.prod(parts)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("affine_until", ["whole", "tail", "none"])
def test_pairs_are_exact_on_what_is_affine(classes, affine_until):
    torch.manual_seed(classes)
    tail = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 7), nn.Linear(7, classes))
    model = {
        "whole": tail,
        "tail": nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), tail),
        "none": nn.Sequential(tail, nn.ReLU()),
    }
    found = pairs(model[affine_until], (2, 8, 8), classes)
    rows = dense(tail, (2, 8, 8))
    truth = (rows[:, None] - rows[None]).norm(dim=2)
    if affine_until == "tail":
        truth *= exact(model["tail"][0], (2, 8, 8))
    if affine_until == "none":
        truth = math.sqrt(2) * torch.linalg.matrix_norm(rows, ord=2) * (1 - torch.eye(classes, dtype=torch.float64))
    torch.testing.assert_close(found, truth.double(), rtol=1e-7, atol=1e-12)
    assert (found >= truth * (1 - 1e-13)).all() and (found.diagonal() == 0).all()


def test_pairs_in_many_classes_and_few_inputs():
    torch.manual_seed(0)
    linear = nn.Linear(3, 40)
    rows = linear.weight.detach().double()
    truth = (rows[:, None] - rows[None]).norm(dim=2)
    torch.testing.assert_close(pairs(linear, (3,), 40), truth, rtol=1e-8, atol=0)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20])
def test_scale_of_the_weights_is_no_obstacle(scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    before, pair = upper(model, (1, 4, 4)).value, pairs(model, (1, 4, 4), 3)
    for parameter in model.parameters():
        parameter.data *= scale
    assert upper(model, (1, 4, 4)).value == pytest.approx(before * scale**2, rel=1e-6)
    torch.testing.assert_close(pairs(model, (1, 4, 4), 3) / scale**2, pair, rtol=1e-6, atol=0)


def test_underflow_never_makes_a_slope_vanish():
    layers = [nn.Linear(2, 2, bias=False) for _ in range(4)]
    for layer in layers:
        layer.double().weight.data.fill_(1e-100)
    affine, broken = nn.Sequential(*layers), nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    assert upper(affine, (2,)).value > 0 and upper(broken, (2,)).value > 0
    layers[-1].weight.data[0] *= 2
    assert (pairs(affine, (2,), 2)[0, 1] > 0) and (pairs(broken, (2,), 2)[0, 1] > 0)


def test_logits_that_differ_by_a_constant_have_no_slope():
    linear = nn.Linear(4, 3)
    linear.weight.data[1] = linear.weight.data[0]
    for model in (linear, nn.Sequential(nn.Linear(4, 4), nn.ReLU(), linear), nn.Sequential(nn.Linear(4, 4), linear)):
        found = pairs(model, (4,), 3)
        assert found[0, 1] == 0 == found[1, 0] and found[0, 2] > 0
    nn.init.zeros_(linear.weight)
    assert upper(linear, (4,)).value == 0 and not pairs(linear, (4,), 3).any()


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class DoublingConv(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return 2 * super()._conv_forward(input, weight, bias)


class Backwards(nn.Sequential):
    def __iter__(self):
        return reversed(list(super().__iter__()))


class Called(nn.Module):
    def __call__(self, x):
        return 2 * super().__call__(x)


class DoublingByMixin(nn.Linear, Called):
    pass


class Renamed(nn.Linear):
    """Nothing that runs is changed."""

    def __init__(self):
        super().__init__(4, 3)
        self.note = "mine"

    def describe(self):
        return self.note


def _hooked(register):
    linear = nn.Linear(4, 3)
    getattr(linear, register)(lambda *_: None)
    return linear


def _replaced():
    linear = nn.Linear(4, 3)
    linear.forward = lambda x: 1e3 * x
    return linear


def _poisoned(value):
    linear = nn.Linear(4, 3)
    linear.weight.data[0, 0] = value
    return linear


def _poisoned_bias():
    linear = nn.Linear(4, 3)
    linear.bias.data[0] = torch.nan
    return linear


REFUSED = {
    "unknown": (nn.Sequential(nn.Linear(4, 4), nn.GLU()), (4,), r"1 \(GLU\)"),
    "nested": (nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Softmax(1))), (4,), r"0\.1 \(Softmax\)"),
    "recurrent": (nn.LSTM(4, 4), (4,), r"the model \(LSTM\)"),
    "forward": (Doubling(4, 3), (4,), "overrides forward"),
    "inner method": (DoublingConv(1, 1, 3), (1, 4, 4), "_conv_forward"),
    "order": (Backwards(nn.Linear(4, 3), nn.Linear(3, 4)), (4,), "__iter__"),
    "call": (DoublingByMixin(4, 3), (4,), "__call__"),
    "instance": (nn.Sequential(_replaced()), (4,), "replaces forward"),
    "forward hook": (_hooked("register_forward_hook"), (4,), "hooks"),
    "pre hook": (_hooked("register_forward_pre_hook"), (4,), "hooks"),
    "backward hook": (_hooked("register_full_backward_hook"), (4,), "hooks"),
    "sequential hook": (nn.Sequential(_hooked("register_forward_hook")), (4,), r"0 \(Linear\)"),
    "old weight norm": (torch.nn.utils.weight_norm(nn.Linear(4, 3)), (4,), "Linear"),
    "old spectral norm": (torch.nn.utils.spectral_norm(nn.Linear(4, 3)), (4,), "Linear"),
    "pruned": (prune.l1_unstructured(nn.Linear(4, 3), "weight", 2), (4,), "Linear"),
    "dropout": (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), (4,), r"1 \(Dropout\).*training"),
    "parametrized in training": (parametrizations.spectral_norm(nn.Linear(4, 3)), (4,), "training"),
    "batch norm": (nn.BatchNorm1d(4), (4,), "BatchNorm1d"),
    "nan": (_poisoned(torch.nan), (4,), "NaN"),
    "inf": (_poisoned(torch.inf), (4,), "NaN or infinity"),
    "nan bias": (_poisoned_bias(), (4,), "bias"),
    "complex": (nn.Linear(4, 3, dtype=torch.complex64), (4,), "complex"),
    "reflect": (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 4, 4), "reflect"),
    "replicate": (nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate"), (1, 4, 4), "replicate"),
    "indices": (nn.MaxPool2d(2, return_indices=True), (1, 4, 4), "indices"),
    "flat batch": (nn.Flatten(0), (4,), "flatten"),
    "features": (nn.Linear(4, 3), (5,), r"expected 4 features, found .*\(5,\)"),
    "channels": (nn.Conv2d(3, 3, 3), (1, 8, 8), "expected 3 channels"),
    "no image": (nn.Conv2d(3, 3, 3), (3, 8), "channel, height, width"),
    "too small": (nn.Conv2d(1, 1, 5), (1, 4, 4), "fit"),
    "pool too small": (nn.MaxPool2d(5), (1, 4, 4), "does not take"),
    "pool without pixels": (nn.MaxPool2d(2, 1, 1, 2), (1, 1, 1), "no pixel"),
    "no shape": (nn.Linear(4, 3), (), "shape"),
    "slope": (nn.LeakyReLU(math.nan), (4,), "slope"),
    "odd pairs": (MaxMin(), (3,), "even"),
    "colours": (Normalize((0.5,), (0.5,)), (3, 4, 4), "channels"),
    "sandwich input": (Sandwich(4, 3), (5,), "expected 4 features"),
}


@pytest.mark.parametrize("model, shape, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_proved_is_refused_by_name(model, shape, message):
    with pytest.raises(Uncertifiable, match=message):
        upper(model, shape)


def test_global_hooks_are_refused():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(Uncertifiable, match="hooks on all modules"):
            upper(nn.Linear(4, 3), (4,))
    finally:
        handle.remove()


def test_pairs_refuses_another_count_of_classes():
    with pytest.raises(Uncertifiable, match="expected 7 logits"):
        pairs(nn.Linear(4, 3), (4,), 7)
    with pytest.raises(Uncertifiable, match="expected 3 logits"):
        pairs(nn.Conv2d(1, 3, 3), (1, 4, 4), 3)


def test_a_subclass_that_changes_nothing_is_taken():
    assert upper(Renamed(), (4,)).value > 0


@pytest.mark.parametrize("parametrize", [parametrizations.spectral_norm, parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_parametrized_weight_counts_as_what_it_evaluates_to(parametrize):
    torch.manual_seed(0)
    linear = parametrize(nn.Linear(6, 4)).eval()
    truth = torch.linalg.matrix_norm(linear.weight.double(), ord=2).item()
    assert upper(linear, (6,)).value == pytest.approx(truth, rel=1e-5)
    for parameter in linear.parametrizations.parameters():
        parameter.data = torch.randn_like(parameter)
    truth = torch.linalg.matrix_norm(linear.weight.double(), ord=2).item()
    assert upper(linear, (6,)).value == pytest.approx(truth, rel=1e-5)


def test_spectral_norm_of_a_reshaped_kernel_is_no_bound_of_the_convolution():
    torch.manual_seed(0)
    conv = parametrizations.spectral_norm(nn.Conv2d(1, 1, 3, padding=1, bias=False), n_power_iterations=50)
    conv.parametrizations.weight.original.data.fill_(1)
    conv(torch.zeros(1, 1, 4, 4))
    assert upper(conv.eval(), (1, 32, 32)).value == pytest.approx(3.0, rel=0.05)


def test_bounds_read_the_weights_as_they_are_and_leave_the_model_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), SandwichLinear(3, 3), Scale(2.0))
    model(torch.rand(1, 1, 4, 4)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    with torch.inference_mode():
        first, _ = upper(model, (1, 4, 4)).value, pairs(model, (1, 4, 4), 3)
    assert model.training and all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), grads, strict=True))
    with torch.no_grad():
        model[3].weight.mul_(2)
    assert upper(model, (1, 4, 4)).value == pytest.approx(2 * first, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_read_as_they_are(dtype):
    linear = nn.Linear(6, 4).to(dtype)
    truth = torch.linalg.matrix_norm(linear.weight.double(), ord=2).item()
    assert upper(linear, (6,)).value == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), MaxMin(), nn.MaxPool2d(2, 1)], ids=str)
def test_no_pair_of_logits_moves_faster_than_its_bound(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), activation, nn.Flatten(), nn.LazyLinear(3)).double()
    model(torch.zeros(1, 1, 5, 5, dtype=torch.float64))
    model = nn.Sequential(*model[:3], _plain(model[3])).double()
    found, whole = pairs(model, (1, 5, 5), 3), upper(model, (1, 5, 5)).value
    for x in torch.randn(30, 1, 1, 5, 5, dtype=torch.float64) * 3:
        jacobian = torch.autograd.functional.jacobian(model, x).view(3, -1)
        assert torch.linalg.matrix_norm(jacobian, ord=2) <= whole
        assert ((jacobian[:, None] - jacobian[None]).norm(dim=2) <= found + 1e-12).all()


def _plain(lazy):
    linear = nn.Linear(lazy.in_features, lazy.out_features)
    linear.load_state_dict(lazy.state_dict())
    return linear
