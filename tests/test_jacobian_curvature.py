"""Jacobian and curvature penalties, and spectral normalisation, against closed forms and dense matrices."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import affine, bent, dense
from pydantic import ValidationError
from torch import nn

from robustbench_rkhs.bounds import upper
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.networks import MLP, Convolutional, LipschitzBounded, SpectrallyNormalised
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.penalties import Curvature, Jacobian
from robustbench_rkhs.training.recipe import TrainRecipe


@settings(max_examples=20)
@given(st.integers(2, 6), st.sampled_from([(1, 4, 4), (5,), (3, 2, 2)]), st.integers(0, 5))
def test_jacobian_of_an_affine_model_is_the_squared_frobenius_norm(classes, shape, seed):
    model, x, y, *_ = affine(classes=classes, shape=shape, seed=seed, images=4)
    weight = model[1].weight
    penalty = Jacobian(weight=2.0)(model, x, y)
    torch.testing.assert_close(penalty, 2 * weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, 4 * weight.detach())


@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_jacobian_equals_autograds_own_image_by_image(of):
    model, x, y = bent(classes=3, shape=(1, 4, 4)).double().eval(), torch.rand(5, 1, 4, 4).double(), torch.zeros(5).long()

    def outputs(image):
        logits = model(image[None])[0]
        return logits.softmax(0) if of == "probabilities" else logits

    truth = sum(torch.autograd.functional.jacobian(outputs, image).square().sum() for image in x) / len(x)
    torch.testing.assert_close(Jacobian(weight=1.0, of=of)(model, x, y), truth)


def test_projected_jacobian_is_unbiased_and_counted_by_keys():
    model, x, y, *_ = affine(classes=4, images=1)
    gram = (model[1].weight @ model[1].weight.T).detach().double()
    copies, one = 4000, Jacobian(weight=1.0, projections=1)
    values = one(model, x.expand(copies, *x.shape[1:]), y.expand(copies), torch.arange(copies))
    # v uniform on the sphere of R^K: Var(K v^T G v) = K^2 (2 tr G^2 + tr(G)^2) / (K (K + 2)) - tr(G)^2
    trace, squares = gram.trace(), gram.square().sum()
    deviation = (16 * (2 * squares + trace**2) / 24 - trace**2).sqrt()
    assert abs(values - trace) < 4 * deviation / math.sqrt(copies)
    spread = torch.stack([one(model, x, y, torch.tensor([key])) for key in range(500)]).std().item()
    assert spread == pytest.approx(deviation.item(), rel=0.15)
    many = torch.stack([Jacobian(weight=1.0, projections=9)(model, x, y, torch.tensor([key])) for key in range(200)])
    assert many.std().item() == pytest.approx(deviation.item() / 3, rel=0.25)


@pytest.mark.parametrize("penalty", [Jacobian(projections=2), Curvature(direction="random"), Curvature(), Jacobian()])
def test_the_penalty_of_a_batch_is_the_mean_of_its_halves_and_draws_nothing_global(penalty):
    torch.manual_seed(0)
    model = bent(classes=3, shape=(1, 4, 4)).double().train()
    x, y, keys = torch.rand(6, 1, 4, 4).double(), torch.arange(6) % 3, torch.arange(6) + (3 << 32)
    before, state = torch.random.get_rng_state(), copy.deepcopy(model.state_dict())
    whole = penalty(model, x, y, keys)
    halves = (penalty(model, x[:3], y[:3], keys[:3]) + penalty(model, x[3:], y[3:], keys[3:])) / 2
    torch.testing.assert_close(whole, halves)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


class LogProbability(nn.Module):
    """Two classes with p_0 = e^(-q(x)): the cross-entropy of class 0 is q itself. q = a x + x M x / 2."""

    def __init__(self, slope, matrix):
        super().__init__()
        self.slope, self.matrix = nn.Parameter(slope), nn.Parameter(matrix)

    def forward(self, x):
        q = x @ self.slope + 0.5 * (x @ self.matrix * x).sum(1)
        return torch.stack([-q, torch.log(-torch.expm1(-q))], dim=1)


@pytest.mark.parametrize("direction", ["gradient", "sign", "random"])
@pytest.mark.parametrize("h", [0.01, 0.2])
def test_curvature_of_a_quadratic_loss_is_its_hessian_along_the_direction(direction, h):
    torch.manual_seed(0)
    root = torch.rand(4, 4).double()
    matrix, slope = root @ root.T, torch.ones(4).double()
    x, y, keys = torch.rand(3, 4).double() + 0.5, torch.zeros(3).long(), torch.arange(3)
    penalty = Curvature(weight=3.0, h=h, direction=direction)
    model = LogProbability(slope, matrix)
    found = penalty(model, x, y, keys)
    gradient = slope + x @ matrix
    if direction == "random":  # any unit vector: between the squared eigenvalues, and not the same for each image
        low, *_, high = torch.linalg.eigvalsh(matrix).square()
        assert 3 * low <= found <= 3 * high
        assert not torch.equal(found, penalty(model, x, y, keys + 1))
    else:
        z = gradient.sign() if direction == "sign" else gradient
        z = z / z.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found, 3 * (z @ matrix).square().sum(1).mean())
    assert torch.autograd.grad(found, model.matrix)[0].abs().sum() > 0


def test_curvature_of_a_linear_loss_is_zero():
    model = LogProbability(torch.ones(4).double(), torch.zeros(4, 4).double())
    assert Curvature(weight=1.0, h=0.1)(model, torch.rand(3, 4).double() + 0.5, torch.zeros(3).long()) < 1e-20


def test_curvature_of_a_softmax_regression_is_its_known_hessian():
    model, x, y, *_ = affine(classes=3, images=8)
    model, x = model.double(), x.double()
    weight, p = model[1].weight.detach(), model(x).softmax(1).detach()
    gradient = (p - nn.functional.one_hot(y, 3)) @ weight
    z = gradient / gradient.norm(dim=1, keepdim=True)
    hessian = torch.stack([weight.T @ (torch.diag(one) - torch.outer(one, one)) @ weight for one in p])
    truth = torch.einsum("nij,nj->ni", hessian, z).square().sum(1).mean()
    torch.testing.assert_close(Curvature(weight=1.0, h=1e-4, direction="gradient")(model, x, y), truth, rtol=1e-3, atol=0)


def test_curvature_without_a_gradient_is_zero_and_a_ramp_may_not_reach_zero():
    class Flat(nn.Module):
        bias = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return self.bias + 0 * x.sum(1, keepdim=True)

    assert Curvature()(Flat(), torch.rand(3, 4), torch.zeros(3).long()) == 0
    ramped = Curvature(schedule={"h": {"start": 0.0, "end": 0.5}})
    with pytest.raises(UserError, match="expected a step h above 0, found 0"):
        ramped.at(0.0)(Flat(), torch.rand(3, 4), torch.zeros(3).long())


def spectrally(inner, shape=(1, 6, 6), seed=0, passes=0):
    torch.manual_seed(seed)
    model = SpectrallyNormalised(network=inner).build(shape, 3)
    with torch.no_grad():
        for module in model:
            if hasattr(module, "parametrizations"):
                original = module.parametrizations.weight.original
                original.copy_(torch.randn_like(original) * 3)  # u and v are now those of another matrix
        for _ in range(passes):
            model(torch.rand(2, *shape))
    return model.eval()


@pytest.mark.parametrize("inner", [MLP(hidden=(7,)), Convolutional(channels=(2, 3), hidden=(5,))], ids=["mlp", "convolutional"])
@pytest.mark.parametrize("passes", [0, 1, 300])
def test_the_bound_of_a_spectrally_normalised_network_holds_however_bad_its_power_iterates(inner, passes):
    model, shape = spectrally(inner, passes=passes), (1, 6, 6)
    bound, now = upper(model, shape).value, shape
    product = 1.0
    for layer in model:
        single = upper(layer, now)
        if hasattr(layer, "weight"):
            truth = torch.linalg.matrix_norm(dense(copy.deepcopy(layer).double(), now), ord=2).item()
            assert truth <= single.value <= truth * (1 + 1e-6)
            product *= truth
            reshaped = torch.linalg.matrix_norm(layer.weight.detach().double().flatten(1), ord=2).item()
            assert reshaped >= 1 - 1e-6
            if passes == 300:
                assert reshaped == pytest.approx(1, abs=1e-3)
        now = single.shape
    assert bound <= product * (1 + 1e-6)
    x = torch.rand(20, *shape).double().requires_grad_()
    twin = copy.deepcopy(model).double()
    rows = [torch.autograd.grad(twin(x)[:, k].sum(), x)[0].flatten(1) for k in range(3)]
    assert torch.linalg.matrix_norm(torch.stack(rows, 1), ord=2).max() <= bound


def test_power_iterates_stand_still_in_eval_mode_and_beside_the_training():
    model = spectrally(MLP(hidden=(7,)))
    before = copy.deepcopy(model.state_dict())
    x, y = torch.rand(4, 1, 6, 6), torch.zeros(4).long()

    def same():
        return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    model(x)
    assert same()
    model.train()
    with pytest.raises(Uncertifiable, match=r"call eval\(\) of it"):
        upper(model, (1, 6, 6))
    before = copy.deepcopy(model.state_dict())
    with per_image(model):
        model(x)
    Jacobian()(model, x, y)
    assert same() and all(module.training for module in model.modules())
    model(x)
    assert not same()


def test_spectral_normalisation_is_refused_where_it_has_no_meaning():
    with pytest.raises(UserError, match="lipschitz_bounded has no free linear or convolutional weight"):
        SpectrallyNormalised(network=LipschitzBounded()).build((1, 4, 4), 3)
    with pytest.raises(ValidationError, match="give mean and std to the network inside"):
        SpectrallyNormalised(mean=(0.5,), std=(0.5,))


def test_power_iterates_are_saved_with_the_checkpoint(tmp_path):
    inner = {"name": "mlp", "hidden": [8], "mean": [0.3], "std": [0.4]}
    recipe = TrainRecipe.parse(
        {
            "data": {"name": "digits", "train": 100, "validation": 50},
            "network": {"name": "spectrally_normalised", "network": inner},
            "epochs": 2,
            "batch_size": 50,
        }
    )
    assert TrainRecipe.parse(recipe.model_dump(mode="json")) == recipe
    train(recipe, tmp_path)
    loaded = checkpoint.load(tmp_path).model
    state = loaded.state_dict()
    stored = checkpoint.read_safetensors(tmp_path / "model.safetensors")
    assert any(name.endswith("_u") for name in stored)
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    assert upper(loaded, (1, 8, 8)).value < 3.5  # 1 / std = 2.5 times two layers of about one
