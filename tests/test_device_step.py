"""Steps that ask nothing of the host: the numbers they draw, the attack they unroll, the training they make."""

import copy
import json

import pytest
import torch
from heard import Killed, killed_when
from test_train import tiny
from torch import nn

from robustbench_rkhs.attacks import PGD
from robustbench_rkhs.attacks.unrolled import unrolled
from robustbench_rkhs.bounds import pairs
from robustbench_rkhs.bounds.differentiable import gram_pairs
from robustbench_rkhs.data.augmentation import augment_on_device
from robustbench_rkhs.layers import LinearNormalized, LinearResidual, LinearResidualConv, MaxMin
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.runtime.events import TrainingStep
from robustbench_rkhs.runtime.hashed_rng import hashed_normals, hashed_uniforms
from robustbench_rkhs.training.device_step import DeviceStep
from robustbench_rkhs.training.finite import FiniteWatch
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run

ATTACK = {"name": "pgd", "eps": 0.2, "steps": 2, "start": "random", "keep": "last", "loss": "cross_entropy"}


def fast(**changes) -> TrainRecipe:
    return tiny(**({"attack": ATTACK, "penalties": [], "projections": [], "on_device": True} | changes))


def test_hashed_numbers_are_splitmix64s():
    state = (2**40 * 0x9E3779B97F4A7C15 + 5) % 2**64
    for _ in range(2):
        state = finalised(state)
    expected = [(finalised((state + i * 0x9E3779B97F4A7C15) % 2**64) >> 41) for i in (1, 2, 3)]
    found = hashed_uniforms(torch.tensor([7, 2**40]), 5, 3)
    assert ((found[1] * 2**23 - 0.5).long()).tolist() == expected


def finalised(bits: int) -> int:
    """splitmix64's finalizer, in Python's integers."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
    return bits ^ (bits >> 31)


def test_hashed_numbers_are_spread_as_they_should_be_and_differ_by_key_and_seed():
    keys = torch.arange(200)
    uniform, normal = hashed_uniforms(keys, 0, 500), hashed_normals(keys, 0, torch.zeros(200, 500))
    assert 0 < uniform.min() and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.005 and abs(uniform.std() - 12**-0.5) < 0.005
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01
    assert abs(torch.corrcoef(uniform)[0, 1:]).max() < 0.2
    assert not torch.equal(uniform, hashed_uniforms(keys, 1, 500)) and len(uniform[:, 0].unique()) == 200


@pytest.mark.parametrize("settings", [{}, {"decay": False, "box": "none"}, {"norm": "linf", "eps": 0.05}, {"loss": "margin"}])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_unrolled_pgd_finds_what_pgd_finds(digits, settings, keep):
    attack = PGD(**({"eps": 0.3, "steps": 4, "targets": 0, "keep": keep, "loss": "cross_entropy"} | settings))
    keys = torch.arange(len(digits.x))
    found = unrolled(attack, digits.model, digits.x, digits.y, keys, torch.tensor(1.0))
    expected = attack.perturbed(digits.model, digits.x, digits.y, keys)
    broken = digits.model(expected).argmax(1) != digits.y
    if keep == "best":  # what fell is left alone by the attack itself
        assert torch.equal(broken, digits.model(found).argmax(1) != digits.y)
        found, expected = found[~broken], expected[~broken]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_unrolled_start_is_random_and_stays_inside(digits, norm):
    attack = PGD(eps=0.3, steps=1, step_size=1e-9, norm=norm, start="random", keep="last", loss="cross_entropy")
    x, y, keys = digits.x, digits.y, torch.arange(len(digits.x))
    found = unrolled(attack, digits.model, x, y, keys, torch.tensor(0.5))
    moved = (found - x).flatten(1)
    length = moved.norm(dim=1) if norm == "l2" else moved.abs().amax(1)
    assert 0.02 < length.max() <= 0.15 + 1e-6 and found.min() >= 0 and found.max() <= 1
    part = unrolled(attack, digits.model, x[7:9], y[7:9], keys[7:9], torch.tensor(0.5))
    torch.testing.assert_close(part, found[7:9])  # whatever else is in the batch


def test_augmentation_on_the_device_shifts_and_mirrors():
    x, keys = torch.rand(300, 3, 6, 6), torch.arange(300)
    found = augment_on_device(x, 1, True, keys, 0)
    inner = x[:, :, 1:-1, 1:-1]
    kept = [torch.equal(a[:, 1:-1, 1:-1], b) or torch.equal(a.flip(2)[:, 1:-1, 1:-1], b) for a, b in zip(found, inner, strict=True)]
    assert 10 < sum(kept) < 80  # one in nine stays where it was
    assert torch.equal(augment_on_device(x[5:6], 1, True, keys[5:6], 0), found[5:6])
    assert (
        0.4
        < torch.stack([(a == b).all() for a, b in zip(augment_on_device(x, 0, True, keys, 0), x, strict=True)]).float().mean()
        < 0.6
    )
    jittered = augment_on_device(x, 0, False, keys, 0, jitter=True)
    assert 0 <= jittered.min() and jittered.max() <= 1 and not torch.equal(jittered, x)


def test_a_step_on_the_device_is_the_ordinary_step():
    """Where nothing is drawn at random they are the same."""
    attack = ATTACK | {"start": "zero"}
    recipes = [tiny(attack=attack, projections=[], clip=0.5, ema=0.9, data={"name": "digits", "train": 200, "validation": 100})]
    recipes.append(recipes[0].model_copy(update={"on_device": True}))
    found = []
    for recipe in recipes:
        splits = recipe.data.load()
        run = Run(recipe, splits.test, "cpu")
        run.prepare(splits.train)
        for _ in run.stepped(splits.train, DeviceStep(run, splits.train) if recipe.on_device else None):
            pass
        found.append(run.evaluated().state_dict() | {"loss": run.losses})
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-5, rtol=1e-4)


def test_a_training_on_the_device_resumes_bit_for_bit(tmp_path):
    kill = killed_when(lambda event: isinstance(event, TrainingStep) and (event.epoch, event.step) == (1, 3))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(fast(), whole, save_seconds=0)
    with pytest.raises(Killed):
        train(fast(), broken, save_seconds=0, on_event=kill)
    train(fast(), broken, save_seconds=0)
    for name in ("model.safetensors", "last.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_a_time_limit_ends_the_training_annealed(tmp_path):
    record = train(fast(epochs=100_000, seconds=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert record == lines[-1] and "validation_clean" in record
    assert record["lr"] < 0.02 * max(line["lr"] for line in lines) or len(lines) < 3
    assert record["steps"] == sum(4 for _ in lines[:-1]) + record["steps"] % 4 or record["steps"] % 4 == 0


REFUSED = {
    "compile alone": ({"on_device": False, "compile": True}, "compile: expected on_device true"),
    "noise": ({"noise": 0.1, "attack": None, "validate_with": None}, "noise is drawn on the host, found noise 0.1"),
    "restarts": ({"attack": ATTACK | {"restarts": 2}}, "found restarts 2"),
    "targets": ({"attack": {"name": "pgd", "eps": 0.1}}, "found targets 1"),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_stay_on_the_device_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        fast(**changes)


def test_a_watch_names_the_first_step_and_the_culprit():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    watch = FiniteWatch(model, "cpu")
    fine = [torch.ones_like(parameter) for parameter in model.parameters()]
    assert watch.look(3, fine, torch.tensor(1.0)) == pytest.approx(9**0.5)
    watch.ask(0)
    bad = [*fine[:2], torch.full_like(fine[2], torch.nan), fine[3]]
    watch.look(4, bad, torch.tensor(2.0))
    watch.look(5, fine, torch.tensor(torch.inf))
    with pytest.raises(UserError, match=r"not finite at epoch 7, step 4: 1.weight \(loss 2\)"):
        watch.ask(7)


def test_gradients_are_clipped_together():
    recipe = tiny(
        clip=1e-3, penalties=[], projections=[], optimizer={"name": "sgd", "lr": 1.0, "momentum": 0}, schedule={"name": "constant"}
    )
    splits = recipe.data.load()
    run = Run(recipe, splits.test, "cpu")
    before = copy.deepcopy(run.model)
    run.step(*next(run.batches(splits.train)))
    moved = [a - b for a, b in zip(run.model.parameters(), before.parameters(), strict=True)]
    assert torch.cat([one.flatten() for one in moved]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_gram_bounds_know_the_layers_of_a_liresnet_and_lie_just_above_the_proven_ones():
    torch.manual_seed(0)
    layers = [LinearResidualConv(2, 3), MaxMin(), nn.Flatten(), LinearResidual(32), MaxMin(), LinearNormalized(32, 4)]
    model = nn.Sequential(*layers).eval()
    found, proven = gram_pairs(model, (2, 4, 4), 4, 8), pairs(model, (2, 4, 4), 4)
    off = ~torch.eye(4, dtype=torch.bool)
    ratio = found.detach().double()[off] / proven[off]
    assert ratio.min() >= 1 - 1e-5 and ratio.max() < 1.3
    model.compile(backend="eager")
    torch.testing.assert_close(gram_pairs(model, (2, 4, 4), 4, 8), found)


def test_counters_of_seeds_fit_the_hash():
    assert hashed_uniforms(torch.tensor([1]), mix(3, 2), 1).shape == (1, 1)


def test_gradients_lie_as_their_parameters():
    """Fused optimisers on CUDA refuse other strides; gradients through a layer's bound are transposed otherwise."""
    network = {"name": "liresnet", "blocks": 1, "channels": 8, "features": 16}
    optimizer = {"name": "adam", "lr": 0.001}
    recipe = fast(network=network, loss={"name": "radius"}, optimizer=optimizer, attack=None, channels_last=True, ema=0.9)
    splits = recipe.data.load()
    run = Run(recipe, splits.test, "cpu")
    run.prepare(splits.train)
    next(run.stepped(splits.train, DeviceStep(run, splits.train)))
    for name, parameter in run.model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
