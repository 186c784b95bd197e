"""Penalties of the RKHS-norm experiments: closed forms on affine models, dense matrices, the published algorithm."""

import copy
import io
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import affine, bent, constant_model, dense, masking_model
from torch import nn
from torch.nn import functional

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.training.penalties import (
    AdversarialPerturbation,
    Consistency,
    GradientPenalty,
    LossGradient,
    SpectralNorm,
    VirtualAdversarial,
)

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from published_perturbation import published_perturbation


def split(shape, images=4):
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(5))
    return Split("noise", "train", x, torch.zeros(images).long(), torch.arange(images), 4, "none")


def small_network(channels=3, side=8, classes=5):
    torch.manual_seed(1)
    layers = [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * (side // 2) ** 2, classes))


def weight_gradients(value, model):
    return torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)


ALL = {
    "adversarial_perturbation": AdversarialPerturbation(),
    "adversarial_perturbation, both": AdversarialPerturbation(direction="both", box="unit", chunk=3),
    "loss_gradient": LossGradient(),
    "loss_gradient, l1": LossGradient(norm="l1"),
    "spectral_norm": SpectralNorm(),
    "spectral_norm, operator": SpectralNorm(operator="operator"),
    "spectral_norm, svd": SpectralNorm(method="svd"),
    "spectral_norm, svd, operator": SpectralNorm(method="svd", operator="operator"),
    "virtual_adversarial": VirtualAdversarial(),
    "consistency": Consistency(entropy=0.0),
}


@pytest.mark.parametrize("penalty", ALL.values(), ids=ALL.keys())
def test_training_mode_batchnorm_dropout_and_the_random_state_are_left_alone(penalty):
    model = bent(classes=4).train()
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5) % 4
    penalty = penalty.prepare(model, split((1, 8, 8)), 0)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    value = penalty(model, x, y, torch.arange(5))
    assert value.isfinite() and value > 0 and value.requires_grad
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters()) and not x.requires_grad


@pytest.mark.parametrize("penalty", ALL.values(), ids=ALL.keys())
def test_flat_huge_and_saturated_models_give_finite_values_and_gradients(penalty):
    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3).long()
    huge, *_ = affine(scale=1e4)
    for model in (constant_model(), constant_model(attached=False), masking_model().model, huge):
        value = penalty(model, x, y)
        assert value.isfinite() and value >= 0
        if value.requires_grad:
            assert all(g.isfinite().all() for g in weight_gradients(value, model))
        if not isinstance(model, nn.Sequential):
            assert value == 0


# adversarial_perturbation


@settings(max_examples=12)
@given(st.floats(0.05, 3.0), st.integers(1, 6), st.sampled_from(["increase", "both"]), st.integers(1, 40), st.integers(2, 7))
def test_the_perturbation_of_an_affine_model_is_eps_times_each_row(eps, steps, direction, chunk, classes):
    model, x, y, *_ = affine(classes=classes, images=6)
    row = model[1].weight
    penalty = AdversarialPerturbation(weight=2.0, eps=eps, steps=steps, direction=direction, chunk=chunk)
    value = penalty(model, x, y)
    torch.testing.assert_close(value, 2 * eps**2 * row.square().sum(), rtol=2e-4, atol=1e-6)
    gradient, _ = weight_gradients(value, model)
    torch.testing.assert_close(gradient, 4 * eps**2 * row.detach(), rtol=1e-3, atol=1e-3 * eps**2)


def test_the_perturbation_is_not_masked_by_a_large_margin():
    model, x, y, *_ = masking_model()  # cross-entropy's gradient is under 1e-11 here; a logit's is not
    value = AdversarialPerturbation(eps=1.0)(model, x, y)
    torch.testing.assert_close(value, model[1].weight.square().sum(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("chunk", [1, 7, 16, 200])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_perturbation_equals_the_published_algorithm(chunk, memory):
    model = small_network().to(memory_format=memory)
    x, y = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.zeros(16).long()
    value = AdversarialPerturbation(eps=0.7, steps=4, chunk=chunk)(model, x.to(memory_format=memory), y)
    truth = published_perturbation(model, x, 0.7, 4)
    assert truth > 0.01
    torch.testing.assert_close(value, truth, rtol=1e-5, atol=0)
    for ours, theirs in zip(weight_gradients(value, model), weight_gradients(truth, model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class Hill(nn.Module):
    """f_0 = -a |x|^2 rises nowhere by fixed steps that overshoot its top; f_1 = 0."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return torch.stack([-self.scale * x.square().sum(1), torch.zeros(len(x))], 1)


def test_a_logit_that_does_not_rise_counts_as_unmoved_and_both_sees_it_fall():
    model, x, y = Hill(), torch.tensor([[0.1, 0.0]]), torch.zeros(1).long()
    assert AdversarialPerturbation(eps=1.0)(model, x, y) == 0
    value = AdversarialPerturbation(eps=1.0, direction="both")(model, x, y)
    torch.testing.assert_close(value, torch.tensor((1.1**2 - 0.1**2) ** 2))
    (gradient,) = weight_gradients(value, model)
    torch.testing.assert_close(gradient, 2 * value.detach())


def test_the_box_holds_perturbed_images_in_it():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    nn.init.ones_(model[0].weight)
    x, y = torch.tensor([[1.0, 1.0, 0.9, 0.9], [1.0, 1.0, 1.0, 1.0]]), torch.zeros(2).long()
    torch.testing.assert_close(AdversarialPerturbation()(model, x, y), torch.tensor(4.0))
    torch.testing.assert_close(AdversarialPerturbation(box="unit")(model, x, y), torch.tensor(0.2**2))


@pytest.mark.parametrize(
    "penalty", [AdversarialPerturbation(eps=0.5), AdversarialPerturbation(direction="both"), GradientPenalty()], ids=repr
)
def test_two_halves_average_to_the_supremum_over_the_whole(penalty, monkeypatch):
    """What two processes do: each searches its half, the owner of each class's maximum counts it twice."""
    model, module = small_network(), sys.modules[type(penalty).__module__]
    x, y = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.zeros(12).long()
    whole = penalty(model, x, y)
    halves, found = (x[:5], x[5:]), []
    monkeypatch.setattr(module, "owned", lambda values: (found.append(values.detach()), torch.ones_like(values).bool())[1])
    for half in halves:
        penalty(model, half, y[: len(half)])
    owners = torch.stack(found).argmax(0)
    assert 0 < owners.sum() < len(owners), "each half owns a class"
    monkeypatch.setattr(module, "world", lambda: 2)
    total = torch.zeros(())
    for rank, half in enumerate(halves):
        monkeypatch.setattr(module, "owned", lambda values, rank=rank: owners == rank)
        total = total + penalty(model, half, y[: len(half)]) / 2
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=0)
    for ours, truth in zip(weight_gradients(total, model), weight_gradients(whole, model), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)


# loss_gradient


@settings(max_examples=12)
@given(st.sampled_from(["l2", "l1"]), st.integers(2, 6), st.floats(0.1, 20.0))
def test_the_loss_gradient_of_an_affine_model(norm, classes, scale):
    model, x, y, *_ = affine(classes=classes, scale=scale, images=7)
    y = (y + torch.arange(len(y))) % classes
    value = LossGradient(weight=3.0, norm=norm)(model, x, y)
    rows = (model(x).softmax(1) - functional.one_hot(y, classes)) @ model[1].weight
    truth = 3.0 * (rows.square() if norm == "l2" else rows.abs()).sum(1).mean()
    torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-7)
    for ours, theirs in zip(weight_gradients(value, model), weight_gradients(truth, model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_loss_gradient_is_a_mean_of_images(norm):
    model, penalty = small_network(), LossGradient(norm=norm)
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    halves = penalty(model, x[:3], y[:3]) + penalty(model, x[3:], y[3:])
    torch.testing.assert_close(penalty(model, x, y), halves / 2, rtol=1e-5, atol=0)


# spectral_norm


def matrices(model, operator, shape):
    """The dense matrix of every weighted layer, at the size of its own input."""
    found, x = [], torch.rand(1, *shape)
    for layer in model:
        if isinstance(layer, nn.Linear) or (operator == "reshaped" and isinstance(layer, nn.Conv2d)):
            found.append(layer.weight.detach().flatten(1))
        elif isinstance(layer, nn.Conv2d):
            found.append(dense(layer, tuple(x.shape[1:])))
        x = layer(x)
    return found


def layered(mode, stride=1, groups=1):
    torch.manual_seed(4)
    second = nn.Conv2d(4, 6, 3, stride, padding=1, padding_mode=mode, groups=groups)
    layers = [nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode), nn.ReLU(), second, nn.ReLU(), nn.Flatten()]
    width = 6 * len(range(0, 5, stride)) * len(range(0, 6, stride))
    return nn.Sequential(*layers, nn.Linear(width, 3))


@pytest.mark.parametrize("method", ["power", "svd"])
@pytest.mark.parametrize("operator", ["reshaped", "operator"])
@pytest.mark.parametrize("mode, stride, groups", [("circular", 1, 1), ("zeros", 1, 1), ("zeros", 2, 1), ("zeros", 1, 2)])
def test_the_spectral_norm_is_the_sum_of_squared_singular_values(method, operator, mode, stride, groups):
    model = layered(mode, stride, groups)
    x, y = torch.rand(2, 2, 5, 6), torch.zeros(2).long()
    penalty = SpectralNorm(weight=0.5, method=method, operator=operator, iterations=300)
    value = penalty.prepare(model, split((2, 5, 6)), 0)(model, x, y)
    norms = [torch.linalg.matrix_norm(matrix, ord=2).square() for matrix in matrices(model, operator, (2, 5, 6))]
    truth = 0.5 * sum(norms)
    if (method, operator, mode) == ("svd", "operator", "zeros"):
        assert truth * (1 - 1e-5) <= value <= 1.6 * truth  # an upper bound
    else:
        torch.testing.assert_close(value, truth, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["power", "svd"])
@pytest.mark.parametrize("operator", ["reshaped", "operator"])
def test_the_gradient_of_the_spectral_norm_is_that_of_the_squared_singular_value(method, operator):
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False))
    torch.manual_seed(6)
    nn.init.normal_(model[0].weight)
    x, y = torch.rand(1, 2, 4, 5), torch.zeros(1).long()
    penalty = SpectralNorm(weight=1.0, method=method, operator=operator, iterations=500).prepare(model, split((2, 4, 5)), 0)
    (ours,) = weight_gradients(penalty(model, x, y), model)
    matrix = model[0].weight.flatten(1)
    if operator == "operator":
        basis = torch.eye(40).view(-1, 2, 4, 5)
        matrix = model(basis).flatten(1).T
    (truth,) = weight_gradients(torch.linalg.matrix_norm(matrix, ord=2).square(), model)
    torch.testing.assert_close(ours, truth, rtol=2e-2, atol=2e-2 * truth.abs().max().item())


def test_a_constant_kernel_is_three_reshaped_and_nine_as_an_operator():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False))
    nn.init.ones_(model[0].weight)
    x, y = torch.rand(1, 1, 8, 8), torch.zeros(1).long()
    for method in ("power", "svd"):
        for operator, norm in (("reshaped", 3.0), ("operator", 9.0)):
            penalty = SpectralNorm(weight=1.0, method=method, operator=operator, iterations=50).prepare(model, split((1, 8, 8)), 0)
            torch.testing.assert_close(penalty(model, x, y), torch.tensor(norm**2), rtol=1e-4, atol=0)


def test_power_iteration_follows_the_weights_and_never_exceeds_the_norm():
    model = layered("zeros")
    x, y = torch.rand(1, 2, 5, 6), torch.zeros(1).long()
    power, exact = SpectralNorm().prepare(model, split((2, 5, 6)), 0), SpectralNorm(method="svd")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(30):
        value, truth = power(model, x, y), exact(model, x, y)
        assert 0.9 * truth < value < truth * (1 + 1e-5)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


@pytest.mark.parametrize("operator", ["reshaped", "operator"])
def test_power_iteration_resumes_bit_by_bit(operator):
    """What is stored goes through a file as in a checkpoint; a ramp's copies share one memory."""
    model, shape = layered("zeros"), (2, 5, 6)
    x, y = torch.rand(1, *shape), torch.zeros(1).long()
    node = SpectralNorm(operator=operator, iterations=1, schedule={"weight": {"end": 0.5}})
    whole = node.prepare(model, split(shape), 0)
    first = [whole.at(0.25)(model, x, y) for _ in range(3)]
    assert first[0] < first[2]
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    resumed = node.prepare(model, split(shape), 0)
    resumed.restore(torch.load(file, weights_only=True))
    rest = [[one.at(0.75)(model, x, y) for _ in range(3)] for one in (whole, resumed)]
    assert rest[0] == rest[1] and rest[0][0] > 1.9 * first[2]
    assert node.state() == {}


def test_layers_of_zero_other_dimensions_and_parametrised_ones():
    zero = nn.Sequential(nn.Linear(3, 2))
    nn.init.zeros_(zero[0].weight)
    x, y = torch.rand(1, 3), torch.zeros(1).long()
    for method in ("power", "svd"):
        value = SpectralNorm(method=method)(zero, x, y)
        assert value == 0 and all(g.isfinite().all() for g in weight_gradients(value, zero))
    line = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1))
    signal = torch.rand(1, 2, 6)
    truth = torch.linalg.matrix_norm(dense(line, (2, 6)), ord=2).square()
    found = SpectralNorm(weight=1.0, operator="operator", iterations=200).prepare(line, split((2, 6)), 0)(line, signal, y)
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=0)
    with pytest.raises(UserError, match="use method: power"):
        SpectralNorm(operator="operator", method="svd")(line, signal, y)
    held = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)))
    assert SpectralNorm()(held, x, y) == 0


# consistency


def test_consistency_of_linear_logits_is_its_definition():
    model, x, y, *_ = affine(classes=3, images=4)
    keys = torch.arange(4) + 9
    penalty = Consistency(weight=2.0, entropy=0.5, sigma=0.3, samples=3, seed=5)
    p = torch.stack([model(x + 0.3 * draws(keys, 5, x, draw)).double().softmax(1) for draw in range(3)]).detach()
    mean = p.mean(0)
    divergence = (mean * (mean.log() - p.log())).sum(2).mean(0)
    truth = (2 * divergence - 0.5 * (mean * mean.log()).sum(1)).mean().item()
    assert penalty(model, x, y, keys).item() == pytest.approx(truth, rel=1e-4)
    same = Consistency(weight=2.0, entropy=0.0, sigma=1e-6)(model, x, y, keys).item()
    assert same == pytest.approx(0, abs=1e-6)


# virtual_adversarial


def test_vat_of_two_classes_moves_along_the_only_direction_there_is():
    """One step finds +-(w_1 - w_0) exactly, so each image's value is KL there, on one side or the other."""
    model, x, y, *_ = affine(classes=2, images=6)
    row = (model[1].weight[1] - model[1].weight[0]).detach()
    step = 0.5 * (row / row.norm()).view(1, 4, 4)
    clean = model(x).log_softmax(1).detach()
    sides = [(clean.exp() * (clean - model(x + sign * step).log_softmax(1))).sum(1).detach() for sign in (1, -1)]
    for seed in range(3):
        penalty = VirtualAdversarial(weight=2.0, eps=0.5, seed=seed)
        for i in range(len(x)):
            value = penalty(model, x[i : i + 1], y[i : i + 1], torch.tensor([i])).item()
            assert any(value == pytest.approx(2 * side[i].item(), rel=1e-3) for side in sides)


@settings(max_examples=10)
@given(st.integers(2, 6), st.integers(0, 5))
def test_vat_of_a_linear_softmax_is_its_second_order_form(classes, seed):
    """eps^2 / 2 times the largest eigenvalue of W^T (diag p - p p^T) W, after enough power iterations."""
    model, x, y, *_ = affine(classes=classes, images=4, seed=seed)
    weight, eps = model[1].weight.detach().double(), 0.1
    p = model(x).softmax(1).double().detach()
    largest = [torch.linalg.eigvalsh(weight.T @ (torch.diag(q) - torch.outer(q, q)) @ weight)[-1] for q in p]
    truth = eps**2 / 2 * torch.stack(largest).mean()
    value = VirtualAdversarial(eps=eps, steps=40)(model, x, y)
    assert value.item() == pytest.approx(truth.item(), rel=0.06)
    once = VirtualAdversarial(eps=eps)(model, x, y)
    assert 0 < once < 1.06 * truth


def test_vat_is_counted_by_keys():
    model, penalty = small_network(), VirtualAdversarial()
    x, y, keys = torch.rand(6, 3, 8, 8), torch.zeros(6).long(), torch.arange(6) + (3 << 32)
    whole = penalty(model, x, y, keys)
    assert torch.equal(whole, penalty(model, x, y, keys)) and not torch.equal(whole, penalty(model, x, y, keys + 6))
    assert not torch.equal(whole, VirtualAdversarial(seed=1)(model, x, y, keys))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(penalty(model, x[order], y, keys[order]), whole, rtol=1e-4, atol=0)
    halves = penalty(model, x[:3], y[:3], keys[:3]) + penalty(model, x[3:], y[3:], keys[3:])
    torch.testing.assert_close(halves / 2, whole, rtol=1e-4, atol=0)
    torch.testing.assert_close(penalty(model, x, y + 1, keys), whole)  # no label is read


def test_vat_differentiates_neither_the_clean_answer_nor_the_direction():
    model, x, y, *_ = affine(classes=2, images=1)
    value = VirtualAdversarial(eps=0.5)(model, x, y)
    row = (model[1].weight[1] - model[1].weight[0]).detach()
    clean, step = model(x).log_softmax(1).detach(), 0.5 * (row / row.norm()).view(1, 4, 4)
    truths = [functional.kl_div(model(x + sign * step).log_softmax(1), clean, reduction="sum", log_target=True) for sign in (1, -1)]
    truth = min(truths, key=lambda one: (one - value).abs().item())
    torch.testing.assert_close(value, truth, rtol=1e-3, atol=0)
    for ours, theirs in zip(weight_gradients(value, model), weight_gradients(truth, model), strict=True):
        assert theirs.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(VirtualAdversarial(eps=0.0)(model, x, y), torch.tensor(0.0), atol=1e-6, rtol=0)
