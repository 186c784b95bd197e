"""An accelerator against the CPU: every attack, loss, penalty, layer and certificate, a training step and an evaluation.

RKHS_DEVICE names the device (cuda where not given): without it these tests are skipped. RKHS_DEVICE=cpu tests the tests.
"""

import copy
import os
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from layer_table import LAYERS
from oracles import Affine, Trained, affine, bent
from test_attacks import EVERY, TABLE
from test_losses import LOSSES
from test_penalties import PENALTIES
from torch import Tensor, nn

from robustbench_rkhs import evaluate, layers, verdicts
from robustbench_rkhs.attacks import PGD, AnyAttack, AutoAttack, FoolboxAttack, PublishedPGD
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.unrolled import unrolled
from robustbench_rkhs.certificates import AnyCertificate, Certificate, SmoothingCertificate, listed
from robustbench_rkhs.data import Split
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.runtime.hashed_rng import hashed_normals, hashed_uniforms
from robustbench_rkhs.runtime.precision import full_precision
from robustbench_rkhs.training.device_step import DeviceStep
from robustbench_rkhs.training.losses import Loss
from robustbench_rkhs.training.penalties import FunctionNorm, Penalty
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run

DEVICE = os.environ.get("RKHS_DEVICE", "cuda")
pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(DEVICE.startswith("cuda") and not torch.cuda.is_available(), reason=f"no {DEVICE} here (set RKHS_DEVICE)"),
]
HERE = torch.device(DEVICE).type
NEAR = 1e-3
"""Margins in logits below which a verdict may differ by rounding: such images are listed, not compared."""
LIBRARY = ("autoattack", "published")
"""Attacks of the table that are tried by one row each (the library's code paths differ little from row to row)."""


@pytest.fixture(autouse=True)
def exactly() -> Iterator[None]:
    with full_precision():
        yield


def there(oracle: Affine | Trained) -> tuple[nn.Module, Tensor, Tensor]:
    """A copy of the model, and the images and labels, on the device."""
    return copy.deepcopy(oracle.model).to(DEVICE), oracle.x.to(DEVICE), oracle.y.to(DEVICE)


def is_there(*tensors: Tensor | None) -> None:
    """Made where they belong."""
    assert all(tensor is None or tensor.device.type == HERE for tensor in tensors)


def as_a_whole(one: Tensor, other: Tensor, share: float = 1e-2) -> None:
    """Near in l2 norm: single entries at a kink may differ."""
    one, other = one.detach().cpu().double(), other.detach().cpu().double()
    assert (one - other).norm() <= share * other.norm() + 1e-4


def near(one: Tensor, other: Tensor, relative: float = 1e-3, absolute: float = 1e-5) -> None:
    torch.testing.assert_close(one.detach().cpu(), other.detach().cpu(), rtol=relative, atol=absolute, check_dtype=False)


def kinds(union: object) -> set[type]:
    """The classes of an annotated union that recipes name; the base class beside them is for the user's own."""
    return {kind for kind in get_args(get_args(union)[0]) if "name" in kind.model_fields}


ATTACKS = {
    **{name: row for name, row in EVERY.items() if not isinstance(row.attack, AutoAttack) or name == "apgd-t"},
    "published": TABLE["pgd"]._replace(attack=PublishedPGD(box="unit", loss="cross_entropy"), l2=None, linf=None),
}
ATTACKS.pop("brendel_bethge")  # it compiles for 20 s
PAIRS = [(name, norm) for name, row in ATTACKS.items() for norm in ("l2", "linf") if getattr(row, norm)]


def test_the_tables_cover_their_unions():
    assert kinds(AnyAttack) == {type(row.attack) for row in ATTACKS.values()} | {PGD}
    assert kinds(Loss) == {type(loss) for loss in LOSSES.values()}
    assert kinds(Penalty) == {type(penalty) for penalty in PENALTIES.values()}
    built = {type(build()) for build, _ in LAYERS.values()}
    modules = {getattr(layers, name) for name in layers.__all__ if issubclass(getattr(layers, name), nn.Module)}
    alone = {layers.CayleyOrthogonal, layers.Concatenate, layers.Residual}  # a parametrisation, and containers of layers
    assert modules - alone <= built
    assert kinds(AnyCertificate) == {type(one) for one in certificates()}


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_attacks_break_the_same_images(name, norm):
    row = ATTACKS[name]
    if isinstance(row.attack, AutoAttack):
        pytest.importorskip("pyautoattack")
    if isinstance(row.attack, FoolboxAttack):
        pytest.importorskip("foolbox")
    oracle, factor = affine(4, (1, 4, 4), seed=1, images=8), getattr(row, norm)
    exact = oracle.distance(norm)
    eps = factor * exact.median().item()
    attack = row.attack.aimed(norm=norm, eps=eps, seed=0)
    model, x, y = there(oracle)
    attacked = attack(model, x, y, torch.arange(len(x), device=DEVICE))
    is_there(attacked.images, attacked.forwards, attacked.backwards, attacked.broken)
    assert torch.equal(x.cpu(), oracle.x) and next(model.parameters()).device.type == HERE
    with torch.no_grad():
        broken = (oracle.model(attacked.images.cpu()).argmax(1) != oracle.y).numpy()
    found = distances(oracle.x, attacked.images.cpu(), norm)
    if attack.minimal_norm:
        assert broken.all() and (found / exact).max() <= factor and (found / exact).min() >= 1 - 1e-3
        return
    assert found.max() <= eps * (1 + 1e-5)
    ties = ((exact > eps / factor) & (exact <= eps * (1 + 1e-3))).numpy()  # where the attack may, but need not, succeed
    assert (broken == (exact <= eps / factor).numpy())[~ties].all()


def test_the_attack_behind_the_published_number(digits):
    model, x, y = there(digits)
    attack, keys = PublishedPGD(eps=1.0, steps=20), torch.arange(len(x))
    near(attack(model, x, y, keys.to(DEVICE)).images, attack(digits.model, digits.x, digits.y, keys).images, absolute=1e-3)


@pytest.mark.parametrize("settings", [{}, {"start": "random"}, {"keep": "best", "targets": 0, "norm": "linf", "loss": "margin"}])
def test_unrolled_pgd_is_the_same_there(digits, settings):
    attack = PGD(**({"eps": 0.3, "steps": 3, "keep": "last", "loss": "cross_entropy"} | settings))
    model, x, y = there(digits)
    keys, share = torch.arange(len(x)), torch.tensor(0.5)
    found = unrolled(attack, model, x, y, keys.to(DEVICE), share.to(DEVICE))
    is_there(found)
    as_a_whole(found, unrolled(attack, digits.model, digits.x, digits.y, keys, share), 1e-4)


def test_hashed_numbers_are_the_same_bits_there():
    keys = torch.tensor([0, 1, 2**40, -5])
    assert torch.equal(hashed_uniforms(keys.to(DEVICE), 3, 9).cpu(), hashed_uniforms(keys, 3, 9))
    near(hashed_normals(keys.to(DEVICE), 3, torch.zeros(4, 5, device=DEVICE)), hashed_normals(keys, 3, torch.zeros(4, 5)))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_losses(loss):
    compare(loss, bent(classes=4, shape=(1, 4, 4)).eval())


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(name):
    penalty, model = PENALTIES[name], bent(classes=4, shape=(1, 4, 4)).eval()
    if isinstance(penalty, FunctionNorm):
        x, y = batch()
        split = Split("noise", "train", x, y, torch.arange(len(x)), 4, "none")
        prepared = [FunctionNorm(sampler=penalty.sampler).prepare(model, split.to(where), 0) for where in ("cpu", DEVICE)]
        compare(prepared[0], model, prepared[1])
        return
    compare(penalty, model)


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


def compare(part, model: nn.Module, other=None) -> None:
    """Value and gradients of a loss or penalty, here and there."""
    x, y = batch()
    twin = copy.deepcopy(model).to(DEVICE)
    keys = torch.arange(len(x))
    torch.manual_seed(0)
    here = part(model, x, y, keys)
    torch.manual_seed(0)
    value = (other or part)(twin, x.to(DEVICE), y.to(DEVICE), keys.to(DEVICE))
    is_there(value)
    near(value, here)
    here.backward()
    value.backward()
    for one, same in zip(model.parameters(), twin.parameters(), strict=True):
        assert (one.grad is None) == (same.grad is None)
        if one.grad is not None:
            is_there(same.grad)
            as_a_whole(same.grad, one.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = build(), torch.rand(3, *shape)
    with torch.no_grad():
        for parameter in layer.parameters():  # away from the kinks that exact zeros lie on
            parameter += 0.01 * torch.randn_like(parameter)
    twin = copy.deepcopy(layer).to(DEVICE)
    here, found = layer(x), twin(x.to(DEVICE))
    is_there(found, *twin.state_dict().values())
    near(found, here)
    if found.requires_grad:
        found.square().sum().backward()
        here.square().sum().backward()
        for one, same in zip(layer.parameters(), twin.parameters(), strict=True):
            if one.grad is not None:
                as_a_whole(same.grad, one.grad)


def certificates() -> list[Certificate]:
    """One of each kind."""
    recipes = listed(["margin", "liplt", "eclipse", "ibp", "crown", "alpha_crown"])
    by_name = {kind.model_fields["name"].default: kind for kind in kinds(AnyCertificate)}
    return [by_name[one["name"]].model_validate(one) for one in recipes] + [SmoothingCertificate(n=1000, n0=50)]


@pytest.mark.parametrize("certificate", certificates(), ids=lambda one: one.name)
def test_certificates_prove_the_same_radii(certificate, digits):
    model, x, y = there(digits)
    here, images = digits.model, 12
    if isinstance(certificate, SmoothingCertificate):
        here, model = Smoothed(here, 0.25).eval(), Smoothed(model, 0.25).eval()
    keys, epsilons = torch.arange(images), (0.05, 0.2)
    expected = certificate(here, digits.x[:images], digits.y[:images], keys, epsilons)
    found = certificate(model, x[:images], y[:images], keys.to(DEVICE), epsilons)
    assert found.radius.device.type == "cpu"  # proofs are float64 numbers of the CPU, wherever the model is
    if not isinstance(certificate, SmoothingCertificate):  # a vote may go the other way at a near tie, and with it the count
        near(found.radius, expected.radius, 1e-3, 1e-4)
        return
    assert ((found.radius.cpu() >= 0.05) == (expected.radius.cpu() >= 0.05)).float().mean() >= 0.9


STEP = {
    "data": {"name": "digits", "train": 200, "validation": 100, "crop": 1},
    "network": {"name": "convolutional"},
    "attack": {"name": "pgd", "eps": 0.3, "steps": 2, "start": "random", "keep": "last", "loss": "cross_entropy"},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "penalties": [{"name": "gradient", "weight": 0.01}],
    "schedule": {"name": "one_cycle"},
    "batch_size": 50,
    "clip": 5.0,
    "ema": 0.9,
}


def weights_after(device: str, on_device: bool, penalties: bool) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Of three steps."""
    recipe = TrainRecipe.parse(STEP | {"on_device": on_device} | ({} if penalties else {"penalties": []}))
    splits = recipe.data.load()
    train = splits.train.to(device)
    run = Run(recipe, splits.test, device)
    run.prepare(train)
    stepper = DeviceStep(run, train) if on_device else None
    for count, _ in enumerate(run.stepped(train, stepper)):
        if count == 2:
            break
    run.watch.ask(0)
    is_there_or_here = {tensor.device.type for tensor in run.evaluated().state_dict().values()}
    assert is_there_or_here == {torch.device(device).type}
    return run.evaluated().state_dict(), stepper.how if stepper else {}


@pytest.mark.parametrize("on_device, penalties", [(False, True), (True, True), (True, False)])
def test_three_training_steps(on_device, penalties):
    expected, _ = weights_after("cpu", on_device, penalties)
    found, how = weights_after(DEVICE, on_device, penalties)
    for name, tensor in expected.items():
        near(found[name], tensor, 1e-2, 1e-4)
    if on_device and HERE == "cuda" and not penalties:
        assert how["captured"], how


def test_an_evaluation_has_the_same_verdicts(digits):
    split = Split("digits", "test", digits.x, digits.y, torch.arange(len(digits.x)), 10, "none")
    settings = {"eps": (0.3, 0.8), "effort": "quick", "diagnostics": False, "certificates": ({"name": "margin"}, {"name": "ibp"})}
    model, other = copy.deepcopy(digits.model), copy.deepcopy(digits.model)
    found, expected = evaluate(model, split, device=DEVICE, **settings), evaluate(other, split, **settings)
    assert next(model.parameters()).device.type == "cpu"
    radius = found.table.groupby("index")["radius"].min()
    for eps in settings["eps"]:
        one, same = verdicts.states(found, eps)["state"], verdicts.states(expected, eps)["state"]
        differ = one.index[one != same]
        ties = {int(index): float(radius[index]) for index in differ}
        assert all(abs(distance - eps) < 1e-2 * eps for distance in ties.values()), f"not near ties at eps {eps}: {ties}"
