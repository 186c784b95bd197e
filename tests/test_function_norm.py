"""The function norm and its samplers, the two small networks, BatchNorm's bound, and the sheet of images."""

import copy

import numpy as np
import pytest
import torch
from heard import Killed, killed_at
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import affine, dense
from torch import nn

from robustbench_rkhs.bounds import upper
from robustbench_rkhs.data import Split
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.networks import LeNet, Net
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.sheet import sheet
from robustbench_rkhs.training.loop import train as run
from robustbench_rkhs.training.penalties import FunctionNorm
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.samplers import DataSampler, GaussianSampler, UniformSampler, VAESampler

QUICK = VAESampler(hidden=16, latent=4, iterations=60, batch_size=10)


def images(count=40, shape=(1, 8, 8), seed=0, box="unit"):
    """Blurred bars at random places: something an autoencoder can learn."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(0, shape[-1], (count,), generator=generator)
    bars = torch.exp(-0.5 * (torch.arange(shape[-1])[None] - place[:, None]).float().square())
    x = bars.view(count, *[1] * (len(shape) - 1), shape[-1]).expand(count, *shape).clone()
    return Split("bars", "train", x, place % 3, torch.arange(count), 3, "none", box=box)


def of_training_images(split, keys, count, seed=0):
    return DataSampler().prepare(split, seed)(keys, count)


def test_function_norm_of_an_affine_model_is_the_mean_squared_logits_of_its_samples():
    model, x, y, *_ = affine(classes=4, shape=(1, 8, 8))
    split, keys = images(), torch.arange(6)
    penalty = FunctionNorm(weight=2.0, samples=5, sampler=DataSampler()).prepare(model, split, 0)
    found = penalty(model, x[:6], y[:6], keys)
    samples = of_training_images(split, keys, 5).flatten(1)
    assert samples.shape == (30, 64)
    logits = samples @ model[1].weight.T + model[1].bias
    torch.testing.assert_close(found, 2 * logits.square().sum() / 30)
    found.backward()
    torch.testing.assert_close(model[1].bias.grad, 4 * logits.mean(0).detach())


def test_training_images_are_drawn_evenly():
    split = images(count=10)
    split = split.take(torch.arange(10))
    numbered = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 8, 8) / 10
    split = Split("bars", "train", numbered, split.y, split.index, 3, "none")
    drawn = of_training_images(split, torch.arange(500), 10)[:, 0, 0, 0].mul(10).round().long()
    counts = torch.bincount(drawn, minlength=10).double()
    assert len(counts) == 10 and ((counts - 500).square() / 500).sum() < 27.9  # chi-square, 9 degrees, 0.1%


@pytest.mark.parametrize("sampler", [QUICK, DataSampler(), UniformSampler(), GaussianSampler()], ids=lambda s: s.name)
def test_samples_are_images_counted_by_keys_and_leave_the_random_state(sampler):
    split, before = images(), torch.random.get_rng_state()
    source, keys = sampler.prepare(split, 3), torch.tensor([5, 9, 5 + (1 << 32)])
    drawn = source(keys, 4)
    assert drawn.shape == (12, 1, 8, 8) and drawn.min() >= 0 and drawn.max() <= 1 and not drawn.requires_grad
    assert torch.equal(drawn[4:8], source(keys[1:2], 4))
    again = sampler.prepare(split, 3)
    assert torch.equal(drawn, again(keys, 4)) and not torch.equal(drawn, sampler.prepare(split, 4)(keys, 4))
    assert len(torch.unique(drawn[[0, 1, 4, 8]].flatten(1), dim=0)) > 1
    assert torch.equal(before, torch.random.get_rng_state())


def test_gaussian_and_uniform_samples_have_their_moments():
    split = images(box="none")
    split.x.mul_(4).sub_(2)
    drawn = GaussianSampler().prepare(split, 0)(torch.arange(400), 10)
    mean, std = split.x.mean(0), split.x.std(0, correction=0)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.12, rtol=0)
    torch.testing.assert_close(drawn.std(0), std, atol=0.1, rtol=0)
    even = UniformSampler().prepare(split, 0)(torch.arange(400), 10)
    low, high = split.x.min().item(), split.x.max().item()
    assert low <= even.min() < low + 0.01 and high - 0.01 < even.max() <= high
    assert even.mean().item() == pytest.approx((low + high) / 2, abs=0.02)
    assert even.std().item() == pytest.approx((high - low) / 12**0.5, abs=0.02)


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
@pytest.mark.parametrize("spread", ["prior", "published"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_the_autoencoder_learns_and_samples_pixels(kind, spread, shape):
    node = QUICK.model_copy(update={"kind": kind, "spread": spread, "iterations": 150, "lr": 3e-3})
    split = images(shape=shape)
    fitted = node.fit(split, 0)
    assert fitted.losses[-20:].mean() < 0.8 * fitted.losses[:20].mean()
    drawn = node.prepare(split, 0)(torch.arange(8), 3)
    assert drawn.shape == (24, *shape) and 0 <= drawn.min() and drawn.max() <= 1
    assert all(not parameter.requires_grad for parameter in fitted.model.parameters())
    if spread == "prior":
        assert (fitted.mean == 0).all() and (fitted.std == 1).all()


def test_the_autoencoders_loss_is_minus_the_evidence_bound():
    from robustbench_rkhs.training.samplers.vae import Autoencoder

    torch.manual_seed(0)
    model, x, noise = Autoencoder(QUICK, (1, 8, 8)).double(), torch.rand(5, 1, 8, 8).double(), torch.randn(5, 4).double()
    mean, log_variance = model.encode(x)
    deviation = (log_variance / 2).exp()
    prior, posterior = torch.distributions.Normal(0, 1), torch.distributions.Normal(mean, deviation)
    p = model.decode(mean + deviation * noise).sigmoid()
    entropy = -(x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
    truth = (entropy + torch.distributions.kl_divergence(posterior, prior).sum(1)).mean()
    torch.testing.assert_close(model.loss(x, noise), truth)
    whole = Autoencoder(VAESampler(), (1, 28, 28))
    assert sum(p.numel() for p in whole.parameters()) == 240_344


def test_a_vae_refuses_what_it_cannot_model():
    with pytest.raises(UserError, match=r"needs images in \[0, 1\]"):
        QUICK.prepare(images(box="none"), 0)
    with pytest.raises(UserError, match="at least 4x4 pixels, found shape"):
        QUICK.model_copy(update={"kind": "convolutional"}).prepare(images(shape=(6,)), 0)
    assert QUICK.prepare(images(shape=(6,)), 0)(torch.arange(2), 3).shape == (6, 6)


def normed():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.5), nn.Linear(108, 3)]
    return nn.Sequential(*layers).train()


def test_the_norm_by_the_batch_leaves_batchnorm_and_the_contaminated_one_moves_it():
    split, x, y, keys = images(), torch.rand(6, 1, 8, 8), torch.zeros(6).long(), torch.arange(6)
    clean = FunctionNorm(samples=2, sampler=DataSampler()).prepare(normed(), split, 0)
    dirty = clean.model_copy(update={"statistics": "contaminated"})
    model = normed()
    before = copy.deepcopy(model.state_dict())
    twice = clean(model, x, y, keys), clean(model, x, y, keys)
    assert torch.equal(*twice), "dropout is off"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    samples = of_training_images(split, keys, 2)
    seen, features = model[0](x).detach(), model[0](samples).detach()
    mean, variance = seen.mean((0, 2, 3)).view(3, 1, 1), seen.var((0, 2, 3), correction=0).view(3, 1, 1)
    scaled = (features - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(twice[0], 0.1 * model[5](scaled.flatten(1)).square().sum(1).mean())

    apart = clean.model_copy(update={"statistics": "split"})(model, x, y, keys)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and model[1].track_running_stats
    twice = dirty(model, x, y, keys), dirty(model, x, y, keys)
    assert torch.equal(apart, twice[0]) and not torch.equal(apart, clean(model, x, y, keys))
    assert torch.equal(*twice), "dropout is off"
    assert all(module.training for module in model.modules())
    features = model[0](samples).detach()
    one, other = features.mean((0, 2, 3)), before["1.running_mean"]
    torch.testing.assert_close(model[1].running_mean, 0.9 * (0.9 * other + 0.1 * one) + 0.1 * one)
    scaled = (features - one.view(3, 1, 1)) / (features.var((0, 2, 3), correction=0) + 1e-5).sqrt().view(3, 1, 1)
    torch.testing.assert_close(twice[0], 0.1 * model[5](scaled.flatten(1)).square().sum(1).mean())


def test_the_norm_by_the_batch_does_not_shrink_weights_before_batchnorm():
    """As the loss it does not depend on their scale, so its gradient is orthogonal to them; with constant statistics it is not."""
    model, x, y, keys = normed().double(), torch.rand(6, 1, 8, 8).double(), torch.zeros(6).long(), torch.arange(6)
    model[1].eps = 0.0
    penalty = FunctionNorm(samples=2, sampler=DataSampler()).prepare(model, images(), 0)
    value = penalty(model, x, y, keys)
    value.backward()
    convolution = model[0]
    along = (convolution.weight.grad * convolution.weight).sum() + (convolution.bias.grad * convolution.bias).sum()
    assert abs(along.item()) < 1e-12 and convolution.weight.grad.norm() > 1e-4
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.mul_(7)
    torch.testing.assert_close(penalty(model, x, y, keys), value)
    model.eval()(x)
    assert "forward" not in vars(model[1]), "BatchNorm is itself again"


def test_squashed_samples_are_what_the_network_sees_after_its_normalisation():
    """The published samples: decoded sigmoids of normalised images, taken by the network as they are."""
    split, mean, std = images(), 0.1307, 0.3081
    squashed = Split("bars", "train", ((split.x - mean) / std).sigmoid(), split.y, split.index, 3, "none")
    plain, published = QUICK.prepare(squashed, 0), QUICK.model_copy(update={"squashed": (mean, std)}).prepare(split, 0)
    keys = torch.arange(4)
    torch.testing.assert_close((published(keys, 2) - mean) / std, plain(keys, 2))


def test_contaminated_statistics_end_up_half_generated():
    """A real pass, then a generated one, each with momentum 0.1: the generated share tends to 0.1 / (1 - 0.81) = 52.6%."""
    bright = Split("ones", "train", torch.ones(4, 1, 8, 8), torch.zeros(4).long(), torch.arange(4), 3, "none")
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.Linear(64, 3)).train()
    penalty = FunctionNorm(samples=1, sampler=DataSampler(), statistics="contaminated").prepare(model, bright, 0)
    dark, y = torch.zeros(4, 1, 8, 8), torch.zeros(4).long()
    for _ in range(60):
        model(dark)
        penalty(model, dark, y)
    assert model[0].running_mean.item() == pytest.approx(0.1 / 0.19, rel=1e-3)


def test_an_unprepared_norm_says_so_and_a_ramp_keeps_what_was_prepared():
    model, x, y, *_ = affine(shape=(1, 8, 8))
    penalty = FunctionNorm(sampler=UniformSampler(), schedule={"weight": {"end": 0.5}})
    with pytest.raises(UserError, match="call prepare"):
        penalty(model, x, y)
    prepared = penalty.prepare(model, images(), 0)
    torch.testing.assert_close(prepared.at(0.25)(model, x, y), prepared(model, x, y) / 2)


def test_the_mean_over_a_batch_is_the_mean_of_its_halves():
    model, x, y, *_ = affine(shape=(1, 8, 8), images=6)
    penalty, keys = FunctionNorm(sampler=QUICK).prepare(model, images(), 0), torch.arange(6)
    halves = penalty(model, x[:3], y[:3], keys[:3]) + penalty(model, x[3:], y[3:], keys[3:])
    torch.testing.assert_close(penalty(model, x, y, keys), halves / 2)


@pytest.mark.parametrize("statistics", ["batch", "contaminated"])
def test_a_killed_training_with_a_function_norm_ends_where_an_unbroken_one_does(tmp_path, statistics):
    norm = {"name": "function_norm", "samples": 2, "statistics": statistics, "sampler": QUICK.model_dump()}
    curious = [{"name": "jacobian", "projections": 1}, {"name": "curvature", "direction": "random"}]
    recipe = TrainRecipe.parse(
        {
            "data": {"name": "npz", "path": str(tmp_path / "bars.npz"), "validation": 20},
            "network": {"name": "lenet", "batch_norm": True},
            "penalties": [norm, *curious],
            "optimizer": {"name": "sgd", "lr": 0.001},
            "epochs": 2,
            "batch_size": 8,
        }
    )
    train, test = images(count=52, shape=(1, 28, 28)), images(count=12, shape=(1, 28, 28), seed=1)
    np.savez(tmp_path / "bars.npz", x_train=train.x, y_train=train.y, x_test=test.x, y_test=test.y)
    run(recipe, tmp_path / "whole", save_seconds=0)
    for stop in (3, 4):  # inside the first epoch, inside the second
        with pytest.raises(Killed):
            run(
                recipe,
                tmp_path / "killed",
                save_seconds=0,
                on_event=killed_at(stop),
            )
    run(recipe, tmp_path / "killed", save_seconds=0)
    for file in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


@pytest.mark.parametrize(
    "node, parameters",
    [(Net(), 21_840), (Net(dropout=True), 21_840), (LeNet(), 431_080), (LeNet(batch_norm=True), 432_220)],
)
def test_the_small_networks_have_their_published_size(node, parameters):
    model = node.build((1, 28, 28), 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    kinds = [type(module) for module in model]
    assert (nn.ReLU in kinds) == isinstance(node, Net)
    assert (nn.Dropout2d in kinds) == getattr(node, "dropout", False)
    assert (nn.BatchNorm2d in kinds) == getattr(node, "batch_norm", False)
    assert node.model_copy(update={"mean": (0.1,) * 3, "std": (0.3,) * 3}).build((3, 33, 30), 4)(
        torch.rand(2, 3, 33, 30)
    ).shape == (2, 4)


@pytest.mark.parametrize("node, least", [(Net(), 16), (LeNet(), 28)])
def test_the_small_networks_refuse_smaller_images(node, least):
    node.build((1, least, least), 3)
    with pytest.raises(UserError, match=f"at least {least} pixels a side"):
        node.build((1, least, least - 1), 3)


@settings(max_examples=30)
@given(st.integers(1, 4), st.booleans(), st.integers(0, 20))
def test_batchnorm_bounds_its_dense_matrix(channels, with_affine, seed):
    torch.manual_seed(seed)
    for module, shape in (
        (nn.BatchNorm2d(channels, affine=with_affine), (channels, 3, 2)),
        (nn.BatchNorm1d(channels), (channels,)),
    ):
        module.running_var.copy_(torch.rand(channels) * 10.0 ** torch.randint(-6, 4, (channels,)))
        module.running_mean.normal_()
        if module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        module.eval()
        module = module.double()
        basis = torch.eye(int(np.prod(shape))).double().view(-1, *shape)
        with torch.no_grad():
            matrix = (module(basis) - module(torch.zeros(1, *shape).double())).flatten(1).T
        truth = torch.linalg.matrix_norm(matrix, ord=2).item()
        bound = upper(module, shape)
        assert truth * (1 - 1e-9) <= bound.value <= truth * (1 + 1e-8) + 1e-12 and bound.shape == shape
        merged = nn.Sequential(module, nn.Flatten(), nn.Linear(int(np.prod(shape)), 2)).eval().double()
        exact = torch.linalg.matrix_norm(dense(merged, shape), ord=2).item()
        assert exact <= upper(merged, shape).value <= exact * (1 + 1e-6)


def test_batchnorm_in_train_mode_has_no_bound():
    with pytest.raises(Uncertifiable, match=r"call eval\(\) of it"):
        upper(nn.BatchNorm2d(2).train(), (2, 3, 3))
    with pytest.raises(Uncertifiable, match="normalises by the batch"):
        upper(nn.BatchNorm2d(2, track_running_stats=False).eval(), (2, 3, 3))
    with pytest.raises(Uncertifiable, match="expected 2 channels"):
        upper(nn.BatchNorm2d(2).eval(), (3, 3, 3))
    torch.manual_seed(0)
    lenet = LeNet(batch_norm=True, mean=(0.13,), std=(0.31,)).build((1, 28, 28), 10).eval().double()
    x = torch.rand(5, 1, 28, 28).double().requires_grad_()
    rows = [torch.autograd.grad(lenet(x)[:, k].sum(), x)[0].flatten(1) for k in range(10)]
    steepest = torch.linalg.matrix_norm(torch.stack(rows, 1), ord=2).max().item()
    assert 0 < steepest <= upper(lenet, (1, 28, 28)).value < float("inf")


def test_a_sheet_shows_the_images_and_is_byte_stable(tmp_path):
    pictures = np.linspace(0, 1, 5 * 3 * 4 * 4).reshape(5, 3, 4, 4)
    paths = sheet(pictures, 2, 3, "five", tmp_path / "one")
    assert [path.suffix for path in paths] == [".png", ".pdf", ".svg"] and all(path.stat().st_size > 0 for path in paths)
    again = sheet(pictures, 2, 3, "five", tmp_path / "two")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(paths, again, strict=True))
    other = sheet(pictures[::-1], 2, 3, "five", tmp_path / "three")
    assert paths[0].read_bytes() != other[0].read_bytes()
    assert sheet(pictures[:, 0], 1, 2, "grey", tmp_path / "grey", labels=["a", "b"])[0].is_file()
    for wrong, line in ((np.zeros((2, 2)), "count, 1 or 3 channels"), (np.full((1, 2, 2), np.nan), "finite")):
        with pytest.raises(UserError, match=line):
            sheet(wrong, 1, 1, "", tmp_path / "no")
