"""Losses equal their definitions where there is a closed form, and leave the model as a plain one does."""

import copy
from typing import get_args, get_type_hints

import pytest
import torch
from method_table import rows
from oracles import affine, bent, constant_model
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from robustbench_rkhs.cli.listing import _listing
from robustbench_rkhs.listing import KINDS, listing
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.ramps import Ramp
from robustbench_rkhs.relaxations import ball, crown_margins, interval_margins, trace
from robustbench_rkhs.training.losses import (
    CCIBP,
    IBP,
    MMA,
    SABR,
    CrossEntropy,
    CrownIBP,
    Gloro,
    Hinge,
    MtlIbp,
    MultiMargin,
    SquaredError,
    Trades,
)
from robustbench_rkhs.training.recipe import TrainRecipe

LOSSES = {  # a new loss adds a line to the table of methods
    **dict(rows("loss")),
    "cross_entropy": CrossEntropy(temperature=0.5, offset=0.1),
    "hinge": Hinge(margin=2.0),
    "mma": MMA(eps_max=3.0, steps=3, bisections=4),
    "ibp": IBP(eps=0.03),
    "crown_ibp": CrownIBP(eps=0.03, beta=0.5),
    "gloro, as trades": Gloro(eps=0.1, beta=3),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def batch(classes=4, images=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(images, 1, 4, 4, generator=generator), torch.arange(images) % classes, 10 + torch.arange(images)


def network():
    return bent(classes=4, shape=(1, 4, 4))


@each_loss
def test_loss_is_finite_nonnegative_and_differentiable_in_every_parameter(loss):
    model, (x, y, keys) = network().eval(), batch()
    before, images = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    value = loss(model, x, y, keys)
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite() and value > 0
    assert all(p.grad is None for p in model.parameters())
    value.backward()
    assert torch.equal(x, images) and not x.requires_grad and not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


@each_loss
def test_training_counts_one_batch_and_leaves_every_mode(loss):
    model, (x, y, keys) = network().train(), batch()
    model[3].eval()
    loss(model, x, y, keys).backward()
    assert [module.training for module in model.modules()] == [True, True, True, True, False, True, True]
    assert model[1].num_batches_tracked == 1 and not torch.equal(model[1].running_mean, torch.zeros(4))


@each_loss
def test_the_same_keys_give_the_same_loss_and_no_global_draw(loss):
    model, (x, y, keys) = network().eval(), batch()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = loss(model, x, y, keys)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(loss(model, x, y, keys), first)
    assert torch.equal(loss(model, x, y), loss(model, x, y, torch.arange(len(x))))


@each_loss
def test_a_loss_is_the_mean_over_any_split_of_the_batch(loss):
    model, (x, y, keys) = network().eval(), batch()
    whole = loss(model, x, y, keys)
    for size in (1, 2, 3):
        parts = [loss(model, *part) for part in zip(x.split(size), y.split(size), keys.split(size), strict=True)]
        torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=1e-5)
    order = torch.randperm(len(x))
    torch.testing.assert_close(loss(model, x[order], y[order], keys[order]), whole, rtol=1e-5, atol=1e-5)


@each_loss
def test_a_loss_is_float32_and_near_its_value_under_autocast(loss):
    model, (x, y, keys) = network().eval(), batch()
    exact = loss(model, x, y, keys)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            value = loss(model, x, y, keys)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact, rtol=0.1, atol=0.05)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, list(model.parameters())))


@pytest.mark.parametrize("attached", [True, False], ids=["flat", "ignores its input"])
@pytest.mark.parametrize("loss", [LOSSES[name] for name in LOSSES if LOSSES[name].attacks], ids=lambda loss: loss.name)
def test_a_search_without_a_gradient_stays_where_it_is(loss, attached):
    model = constant_model(classes=4, attached=attached)
    x, y, keys = batch()
    if isinstance(loss, MtlIbp | CCIBP | SABR):
        with pytest.raises(UserError, match="no bounds through layer 'model' \\(_Constant\\)"):
            loss(model, x, y, keys)
        return
    torch.testing.assert_close(loss(model, x, y, keys), _constant_value(loss, model(x), y))


def _constant_value(loss, logits, y):
    terms = cross_entropy(logits, y, reduction="none")
    if isinstance(loss, Trades):
        return terms.mean()
    wrong = logits.argmax(1) != y  # nothing reaches the images that are right
    return (loss.clean * terms + (1 - loss.clean) * terms * wrong).mean()


@pytest.mark.parametrize(
    "loss",
    [
        Trades(eps=0),
        MMA(eps_max=0),
        IBP(eps=0),
        IBP(norm="l2", eps=0),
        CrownIBP(eps=0),
        CrownIBP(norm="l2", eps=0),
        MtlIbp(eps=0),
        CCIBP(eps=0),
        SABR(eps=0),
    ],
)
def test_without_a_ball_what_is_left_is_cross_entropy(loss):
    """A ramp of eps starts here. MMA counts only images that are wrong as they are beside the clean ones."""
    model, (x, y, keys) = network().eval(), batch()
    y = model(x).argmax(1) if isinstance(loss, MMA) else y
    value = loss(model, x, y, keys)
    wanted = (loss.clean if isinstance(loss, MMA) else 1) * cross_entropy(model(x), y)
    torch.testing.assert_close(value, wanted)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, list(model.parameters())))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_hinge_and_multi_margin_are_their_sums(classes):
    model, x, y, *_ = affine(classes=classes)
    y = torch.where(torch.arange(len(y)) % 3 == 0, (y + 1) % classes, y)  # some are wrong
    logits, hinge, linear, square = model(x).tolist(), 0.0, 0.0, 0.0
    for row, label in zip(logits, y.tolist(), strict=True):
        others = [value for j, value in enumerate(row) if j != label]
        hinge += max(0.0, 0.7 + max(others) - row[label])
        linear += sum(max(0.0, 0.7 + value - row[label]) for value in others) / classes
        square += sum(max(0.0, 0.7 + value - row[label]) ** 2 for value in others) / classes
    for loss, wanted in ((Hinge(margin=0.7), hinge), (MultiMargin(margin=0.7), linear), (MultiMargin(margin=0.7, power=2), square)):
        assert loss(model, x, y).item() == pytest.approx(wanted / len(x), rel=1e-5)
        assert wanted > 0


def test_an_image_with_the_margin_pulls_at_nothing():
    model, x, y, *_ = affine(classes=3)
    smallest = (model(x).gather(1, y[:, None]) - model(x).scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).min()
    for loss in (Hinge(margin=smallest.item() * 0.99), MultiMargin(margin=smallest.item() * 0.99)):
        value = loss(model, x, y)
        assert value == 0 and not any(g.any() for g in torch.autograd.grad(value, list(model.parameters())))


def two_classes(norm, seed=0):
    """f_1 - f_0 = w x + b of an affine model with two classes: the model, images, labels, gaps and the dual norm of w."""
    model, x, y, *_ = affine(classes=2, seed=seed)
    model = model.double()
    row = (model[1].weight[1] - model[1].weight[0]).detach()
    logits = model(x.double()).detach()
    return model, x.double(), y, logits[:, 1] - logits[:, 0], row.norm(p=2 if norm == "l2" else 1)


def kl(gap, moved):
    """KL between the answers of two classes, from the gaps of their logits."""
    p = gap.sigmoid()
    return binary_cross_entropy_with_logits(moved, p, reduction="none") - binary_cross_entropy_with_logits(gap, p, reduction="none")


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_trades_on_two_affine_classes_moves_to_an_end_of_the_ball(norm):
    model, x, y, gap, steepness = two_classes(norm)
    eps, beta = 0.05, 5.0
    loss = Trades(norm=norm, eps=eps, beta=beta, steps=20, box="none")
    for i in range(8):
        one = loss(model, x[i : i + 1], y[i : i + 1], torch.tensor([i])).item()
        ends = [kl(gap[i], gap[i] + sign * eps * steepness).item() for sign in (1, -1)]
        clean = cross_entropy(model(x[i : i + 1]), y[i : i + 1]).item()
        divergence = (one - clean) / beta
        assert min(ends) > 0 and min(abs(divergence / end - 1) for end in ends) < 1e-3, (divergence, ends)


def test_trades_differentiates_both_answers():
    model, x, y, *_ = two_classes("linf")
    row = (model[1].weight[1] - model[1].weight[0]).detach()
    loss = Trades(norm="linf", eps=0.05, beta=5.0, steps=20, box="none")
    value = loss(model, x[:1], y[:1])
    moved = loss.search(model, x[:1], None)
    assert (moved - x[:1]).flatten().sign().tolist() in (row.sign().tolist(), (-row).sign().tolist())
    clean, other = model(x[:1]), model(moved)
    p, q = clean.softmax(1), other.softmax(1)
    wanted = cross_entropy(clean, y[:1]) + 5 * (p * (p.log() - q.log())).sum()
    parameters = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_perturbed_images_stay_in_ball_and_box(norm):
    model, (x, y, keys) = network().eval(), batch()
    x = (2 * x - 0.5).clamp(0, 1)  # many pixels at the walls
    for moved, eps in (
        (Trades(norm=norm, eps=0.2, steps=4).search(model, x, keys), 0.2),
        (MMA(norm=norm, eps_max=0.4, steps=4).search(model, x, y)[0], 0.4),
        (MtlIbp(norm=norm, eps=0.1, attack_eps=0.3, steps=4).attacked(model, x, y, keys, 0.3), 0.3),
    ):
        assert moved.amin() >= 0 and moved.amax() <= 1 and not moved.requires_grad
        lengths = (moved - x).flatten(1).norm(p=2 if norm == "l2" else torch.inf, dim=1)
        assert (lengths <= eps + 1e-6).all() and lengths.amax() > 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_mma_on_two_affine_classes_is_the_cross_entropy_on_the_boundary(norm):
    model, x, y, gap, steepness = two_classes(norm)
    y = torch.where(torch.arange(len(y)) % 4 == 0, 1 - y, y)  # a quarter is wrong
    radius = gap.abs() / steepness
    eps_max = radius.median().item()
    wrong = (gap > 0) != (y == 1)
    clean = cross_entropy(model(x), y, reduction="none")
    terms = torch.where(wrong, clean, torch.where(radius <= eps_max, torch.log(torch.tensor(2.0)).double(), 0.0))
    assert wrong.any() and (terms == 0).any() and (terms.isclose(torch.tensor(2.0).double().log())).any()
    loss = MMA(norm=norm, eps_max=eps_max * (1 + 1e-9), clean=0.25, steps=10, bisections=20, box="none")
    torch.testing.assert_close(loss(model, x, y).double(), 0.25 * clean.mean() + 0.75 * terms.mean(), rtol=1e-4, atol=1e-5)


def test_mma_pulls_with_the_gradient_at_the_nearest_point_of_the_boundary():
    model, x, y, gap, steepness = two_classes("l2")
    row = (model[1].weight[1] - model[1].weight[0]).detach()
    nearest = x - (gap / steepness**2)[:, None, None, None] * row.view(1, 1, 4, 4)
    value = MMA(eps_max=2 * (gap.abs() / steepness).max().item(), clean=0, bisections=25, box="none")(model, x, y)
    wanted = cross_entropy(model(nearest), y)
    parameters = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_mma_finds_points_near_the_nearest_boundary_of_ten_affine_classes(norm):
    known = affine(classes=10)
    exact = known.distance(norm)
    moved, counts = MMA(norm=norm, eps_max=1.5 * exact.max().item(), bisections=12).search(known.model, known.x, known.y)
    found = (moved - known.x).flatten(1).norm(p=2 if norm == "l2" else torch.inf, dim=1).double()
    assert counts.all() and (known.model(moved).argmax(1) != known.y).double().mean() > 0.9  # ties sit on the boundary
    assert (found >= exact * (1 - 1e-4)).all() and (found / exact).median() < 1.05


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("loss", [IBP, CrownIBP])
def test_interval_losses_of_an_affine_model_are_the_exact_worst_case(norm, loss):
    model, x, y, *_ = affine(classes=3)
    weight = model[1].weight
    pairs = (weight[y][:, None] - weight).norm(p=2 if norm == "l2" else 1, dim=2)
    logits = model(x)
    worst = logits.gather(1, y[:, None]) - logits - 0.1 * pairs
    wanted = 0.3 * cross_entropy(logits, y) + 0.7 * cross_entropy(-worst, y)
    torch.testing.assert_close(loss(norm=norm, eps=0.1, kappa=0.3)(model, x, y), wanted)


def test_the_worst_case_bounds_every_attack_and_crown_bounds_it_closer():
    model, (x, y, keys) = network().eval(), batch()
    attacked = MtlIbp(eps=0.03, steps=20).attacked(model, x, y, keys, 0.03)
    loosest = IBP(eps=0.03, kappa=0)(model, x, y)
    mixed = CrownIBP(eps=0.03, kappa=0, beta=0.5)(model, x, y)
    tightest = CrownIBP(eps=0.03, kappa=0, beta=1)(model, x, y)
    assert cross_entropy(model(x), y) < cross_entropy(model(attacked), y) <= tightest < mixed < loosest


def test_mixtures_are_mixtures_of_the_bounds():
    model, (x, y, _) = network().eval(), batch()
    found = trace(model, ball(x, 0.05, "linf"))
    tight, loose = crown_margins(found, y), interval_margins(found, y)
    for beta in (0.0, 0.25, 1.0):
        wanted = cross_entropy(-(beta * tight + (1 - beta) * loose), y)
        torch.testing.assert_close(CrownIBP(eps=0.05, kappa=0, beta=beta)(model, x, y), wanted)
    torch.testing.assert_close(CrownIBP(eps=0.05, beta=0)(model, x, y), IBP(eps=0.05)(model, x, y))
    torch.testing.assert_close(MtlIbp(eps=0.05, alpha=1)(model, x, y), IBP(eps=0.05, kappa=0)(model, x, y))


def test_cc_ibp_combines_the_differences():
    model, (x, y, keys) = network().eval(), batch()
    torch.testing.assert_close(CCIBP(eps=0.05, alpha=1)(model, x, y), IBP(eps=0.05, kappa=0)(model, x, y))
    torch.testing.assert_close(CCIBP(eps=0.05, alpha=0)(model, x, y, keys), MtlIbp(eps=0.05, alpha=0)(model, x, y, keys))
    logits = model(CCIBP().attacked(model, x, y, keys, 0.05)).detach()
    worst = interval_margins(trace(model, ball(x, 0.05, "linf")), y)
    mixed = 0.7 * (logits.gather(1, y[:, None]) - logits) + 0.3 * worst
    torch.testing.assert_close(CCIBP(eps=0.05, alpha=0.3)(model, x, y, keys), cross_entropy(-mixed, y))
    assert CCIBP(eps=0.05, alpha=0.3)(model, x, y, keys) <= MtlIbp(eps=0.05, alpha=0.3)(model, x, y, keys)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_sabr_bounds_a_small_ball_around_the_attacked_image(norm):
    model, (x, y, keys) = network().eval(), batch()
    torch.testing.assert_close(SABR(norm=norm, eps=0.05, share=1)(model, x, y), IBP(norm=norm, eps=0.05, kappa=0)(model, x, y))
    attack = MtlIbp(norm=norm, eps=0.05, alpha=0)
    torch.testing.assert_close(SABR(norm=norm, eps=0.05, share=0)(model, x, y, keys), attack(model, x, y, keys))
    model, x, y, gap, steepness = two_classes(norm)
    signed = torch.where(y == 1, gap, -gap) - 0.05 * steepness  # the worst case of an affine pair in the whole ball
    found = SABR(norm=norm, eps=0.05, share=0.4, steps=40, step_size=0.02, box="none")(model, x, y)
    torch.testing.assert_close(found, torch.nn.functional.softplus(-signed).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_mtl_ibp_without_bounds_is_adversarial_training(norm):
    model, x, y, gap, steepness = two_classes(norm)
    signed = torch.where(y == 1, gap, -gap) - 0.05 * steepness  # the worst case of an affine pair
    wanted = torch.nn.functional.softplus(-signed).mean()
    value = MtlIbp(norm=norm, eps=0.01, attack_eps=0.05, alpha=0, steps=40, step_size=0.02, box="none")(model, x, y)
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)
    both = MtlIbp(norm=norm, eps=0.05, alpha=0.5, steps=40, step_size=0.02, box="none")(model, x, y)
    torch.testing.assert_close(both, wanted, rtol=1e-4, atol=1e-5)  # exact from below and from above


def test_bounds_of_a_training_network_do_not_iterate_its_spectral_norms():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 8))
    model, (x, y, _) = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Linear(8, 4)).train(), batch()
    twin = copy.deepcopy(model)
    twin(x)  # the clean pass iterates once, and that is all
    IBP(eps=0.1)(model, x, y)
    ours, theirs = (net[1].parametrizations.weight[0]._u for net in (model, twin))
    assert torch.equal(ours, theirs) and layer.training


def test_recommended_ramps_start_from_plain_cross_entropy():
    ramps = {"eps": Ramp(end=0.5), "kappa": Ramp(start=1, end=0.5), "beta": Ramp(start=1, end=0.5)}
    loss = CrownIBP(eps=0.1, kappa=0.5, beta=0, schedule=ramps)
    model, (x, y, _) = network().eval(), batch()
    torch.testing.assert_close(loss.at(0)(model, x, y), cross_entropy(model(x), y))
    torch.testing.assert_close(loss.at(1)(model, x, y), IBP(eps=0.1, kappa=0.5)(model, x, y))
    halfway = CrownIBP(eps=0.05, kappa=0.75, beta=0.5)
    torch.testing.assert_close(loss.at(0.25)(model, x, y), halfway(model, x, y))


DIGITS = {"data": {"name": "digits"}, "network": {"name": "mlp"}}


@pytest.mark.parametrize("name", ["trades", "mma", "mtl_ibp", "cc_ibp", "sabr"])
def test_a_loss_that_attacks_wants_no_other_attack(name):
    recipe = TrainRecipe.parse(DIGITS | {"loss": {"name": name}})
    assert recipe.loss.attacks and recipe.loss.name == name
    with pytest.raises(UserError, match=f"loss '{name}' perturbs the images itself"):
        TrainRecipe.parse(DIGITS | {"loss": {"name": name}, "attack": {"name": "pgd", "eps": 0.1}})


@pytest.mark.parametrize("name", sorted(loss.name for loss in {type(one): one for one in LOSSES.values()}.values()))
def test_every_loss_has_its_card_and_its_place_in_a_recipe(name):
    assert "Source" in listing("losses", name) or name == "squared_error"
    assert TrainRecipe.parse(DIGITS | {"loss": {"name": name}}).loss.name == name
    if name != "squared_error":
        wave = {"data": {"name": "square_wave"}, "network": {"name": "mlp"}, "loss": {"name": name}}
        with pytest.raises(UserError, match="regression, which has no classes"):
            TrainRecipe.parse(wave)


def test_the_command_line_lists_every_kind():
    kinds = get_args(get_args(get_type_hints(_listing, include_extras=True)["kind"])[0])
    assert set(kinds) == {"all", "models", *KINDS}


def test_losses_read_labels_as_classes():
    """One-hot labels by hand: squared error is the only loss that turns them into numbers."""
    model, (x, y, _) = network().eval(), batch()
    wanted = (model(x) - one_hot(y, 4)).square().mean()
    torch.testing.assert_close(SquaredError()(model, x, y), wanted)
