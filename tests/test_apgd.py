"""Auto-PGD against the paper's algorithm written out for one image, closed forms, exact pass counts and its authors' package."""

import copy

import pytest
import torch
from oracles import Affine, affine, masking_model
from torch import nn

from robustbench_rkhs.attacks import APGD, AutoAttack
from robustbench_rkhs.evaluation.recipe import attack_from
from robustbench_rkhs.nodes.node import UserError

LOSSES = ("cross_entropy", "dlr", "margin", "targeted")
MARKS = (22, 41, 57, 70, 80, 87, 93, 99)  # by hand: 0.22, +0.19, +0.16, +0.13, +0.10, +0.07, then +0.06


class Recorder(nn.Module):
    """Keeps what it is asked."""

    def __init__(self, model):
        super().__init__()
        self.model, self.queried = model, []

    def forward(self, x):
        self.queried.append(x.detach().clone())
        return self.model(x)


def double(oracle):
    return Affine(copy.deepcopy(oracle.model).double(), oracle.x.double(), *oracle[2:])


def smooth(classes=5, seed=0):
    """A curved model in float64 and images it gets right."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, classes)).double()
    x = torch.rand(4, 1, 3, 4, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def run(attack, oracle, eps=None, model=None, at=None):
    at = torch.arange(len(oracle.x)) if at is None else at
    own = () if eps is None else (eps[at],)
    return attack(model or oracle.model, oracle.x[at], oracle.y[at], at, *own)


def stands(oracle, attacked):
    return (attacked.images == oracle.x).flatten(1).all(1)


def test_checkpoints_are_the_papers():
    assert APGD().checkpoints == MARKS
    assert APGD(steps=1).checkpoints == () and APGD(steps=5).checkpoints == (2, 3, 4)


def inside(x, moved, eps, norm):
    delta = moved.clamp(0, 1) - x
    return x + (delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / delta.norm().item()))


def written_out(model, x, y, start, eps, norm, rho):
    """Algorithm 1 for one image, cross-entropy as it is, in the paper's order; all iterates."""
    points, values, step, last, halved, marked = [start], [], 2 * eps, 0, False, torch.inf
    current, previous, best, best_value, best_gradient = start, start, start, torch.inf, None
    for k in range(100):
        leaf = current.clone().requires_grad_()
        value = -nn.functional.cross_entropy(model(leaf[None]), y[None])
        (gradient,) = torch.autograd.grad(value, leaf)
        values.append(value.item())
        if value.item() < best_value:
            best, best_value, best_gradient = current, value.item(), gradient
        if k in MARKS:
            lowered = sum(values[i] < values[i - 1] for i in range(last + 1, k + 1))
            halved = lowered < rho * (k - last) or (not halved and best_value == marked)
            if halved:
                step, current, gradient, values[-1] = step / 2, best, best_gradient, best_value
            last, marked = k, best_value
        way = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        moved = inside(x, current - step * way, eps, norm)
        if k:
            moved = inside(x, current + 0.75 * (moved - current) + 0.25 * (current - previous), eps, norm)
        previous, current = current, moved
        points.append(current)
    return torch.stack(points), step


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("rho", [0.75, 0.0])
def test_every_iterate_is_the_papers(norm, rho):
    """rho 0: only the second rule halves."""
    model, x, y = smooth()
    eps, steps = 0.02 if norm == "l2" else 0.005, []
    recorder = Recorder(model)
    APGD(norm=norm, eps=eps, rescale=False, rho=rho)(recorder, x, y, torch.arange(4))
    queried = torch.stack(recorder.queried[1:], 1)
    for i in range(4):
        expected, step = written_out(model, x[i], y[i], queried[i, 0], eps, norm, rho)
        torch.testing.assert_close(queried[i], expected, rtol=0, atol=2e-6 * eps)
        steps.append(step)
    assert min(steps) < eps  # a rule was followed, and not the same for all


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_starts_are_on_the_sphere_and_differ(norm):
    oracle = affine(4, (3, 5, 4), images=4)
    recorder = Recorder(oracle.model)
    eps = 0.3 * oracle.distance(norm)
    run(APGD(norm=norm, steps=1, restarts=3), oracle, eps, recorder)
    starts = torch.stack(recorder.queried[1::2]) - oracle.x
    size = starts.flatten(2).norm(dim=2) if norm == "l2" else starts.flatten(2).abs().amax(2)
    torch.testing.assert_close(size.double(), eps.expand(3, -1), rtol=1e-3, atol=0)
    flat = nn.functional.normalize(starts.flatten(0, 1).flatten(1))
    assert (flat @ flat.T - torch.eye(12)).abs().max() < 0.6


@pytest.mark.parametrize(("loss", "steps", "restarts"), [("cross_entropy", 100, 1), ("dlr", 9, 2), ("targeted", 9, 2)])
def test_an_image_that_stands_costs_what_the_card_says_and_one_that_fell_nothing_more(loss, steps, restarts):
    """Half of the images have three times the eps they need, the others half of it; the model is asked about nobody else."""
    oracle = affine(4, images=8)
    eps = oracle.l2 * torch.tensor([3.0, 0.5] * 4)
    recorder = Recorder(oracle.model)
    attacked = run(APGD(loss=loss, steps=steps, restarts=restarts, parallel=1), oracle, eps, recorder)
    runs = restarts * (3 if loss == "targeted" else 1)
    assert attacked.forwards[1::2].tolist() == [(steps + 1) * runs + 1] * 4
    assert attacked.backwards[1::2].tolist() == [steps * runs] * 4
    assert stands(oracle, attacked).tolist() == [False, True] * 4
    assert attacked.forwards[::2].max() <= 12 and (attacked.forwards - attacked.backwards)[::2].tolist() == [1] * 4
    sizes = [len(queried) for queried in recorder.queried]
    assert sum(sizes) == attacked.forwards.sum() and sizes[12:] == [4] * len(sizes[12:])


class Jumpy(nn.Module):
    """Wrong wherever the first pixel is not 0.5, for images whose last pixel is dark."""

    def forward(self, x):
        first, last = x.flatten(1)[:, 0], x.flatten(1)[:, -1]
        logit = torch.where(((first - 0.5).abs() > 1e-6) & (last < 0.3), -1.0, 1.0) + 0 * first
        return torch.stack([logit, -logit], 1)


def test_an_image_that_falls_at_its_random_start_costs_two_passes():
    x = torch.full((6, 1, 3, 3), 0.5)
    x[::2, 0, 2, 2] = 0.1
    recorder = Recorder(Jumpy())
    attacked = APGD(eps=0.05)(recorder, x, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    assert attacked.forwards.tolist() == [2, 102] * 3 and attacked.backwards.tolist() == [1, 100] * 3
    assert [len(queried) for queried in recorder.queried] == [6, 6] + [3] * 100


@pytest.mark.parametrize("parallel", [1, 2, 9])
def test_targets_side_by_side_cost_a_survivor_the_same_and_break_the_same(parallel):
    oracle = double(affine(7, images=12))
    eps = oracle.l2.median().expand(12)
    attacked = run(APGD(loss="targeted", steps=10, parallel=parallel), oracle, eps)
    one = run(APGD(loss="targeted", steps=10, parallel=1), oracle, eps)
    standing = stands(oracle, attacked)
    assert torch.equal(standing, stands(oracle, one)) and 0 < standing.sum() < 12
    assert (attacked.forwards[standing] == 11 * 6 + 1).all() and (attacked.backwards[standing] == 10 * 6).all()
    assert (attacked.forwards[~standing] <= parallel * one.forwards[~standing]).all()
    first = one.forwards <= 12  # the first target runs alone
    assert first.any() and torch.equal(attacked.forwards[first], one.forwards[first])
    few = run(APGD(loss="targeted", steps=10, targets=2, parallel=parallel), oracle, eps * 0.1)
    assert (few.forwards == 11 * 2 + 2).all()  # one more, which chose the nearest two


def test_the_most_likely_target_comes_first():
    """Its own boundary lies within eps, those of the unlikely ones beyond: the first target is enough, the last would not be."""
    oracle = affine(6, (3, 8, 8), images=16)
    logits = oracle.model(oracle.x).scatter(1, oracle.y[:, None], -torch.inf)
    likely = logits.argmax(1)
    gap = oracle.model(oracle.x).gather(1, oracle.y[:, None])[:, 0] - logits.amax(1)
    weight = oracle.model[1].weight
    eps = 1.02 * (gap / (weight[oracle.y] - weight[likely]).norm(dim=1)).detach().double()
    recorder = Recorder(oracle.model)
    attacked = run(APGD(loss="targeted", steps=30, targets=1), oracle, eps, recorder)
    assert not stands(oracle, attacked).any() and attacked.forwards.max() <= 32
    assert (oracle.model(attacked.images).argmax(1) == likely).sum() > 12


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("loss", "parallel"), [("cross_entropy", 1), ("dlr", 1), ("targeted", 3)])
def test_an_image_alone_gets_what_it_gets_in_company(norm, loss, parallel):
    """In any order, with any neighbours, in batches of three, and with its own eps as the field."""
    oracle = double(affine(4, images=10, seed=4))
    eps = oracle.distance(norm) * torch.linspace(0.7, 1.4, 10)
    attack = APGD(norm=norm, loss=loss, parallel=parallel, steps=8, restarts=2)
    together = run(attack, oracle, eps)
    assert 0 < stands(oracle, together).sum() < 10
    order = torch.tensor([7, 2, 9, 0, 4, 8, 1, 5, 3, 6])
    for at in (order, order[:4]):
        part = run(attack.model_copy(update={"batch_size": 3}), oracle, eps, at=at)
        torch.testing.assert_close(part.images, together.images[at], rtol=0, atol=1e-12)
        assert torch.equal(part.forwards, together.forwards[at]) and torch.equal(part.backwards, together.backwards[at])
    for i in (1, 8):
        alone = run(attack.model_copy(update={"eps": eps[i].item()}), oracle, at=torch.tensor([i]))
        torch.testing.assert_close(alone.images, together.images[[i]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_scaled_logits_give_the_same_images(loss):
    model, x, y = smooth(classes=4)
    eps = torch.tensor([0.01, 0.4, 0.02, 2.0], dtype=torch.float64)
    attack = APGD(loss=loss, steps=10)
    plain = attack(model, x, y, torch.arange(4), eps)
    assert 0 < (plain.images == x).flatten(1).all(1).sum() < 4
    for scale in (1e-4, 1e4):
        other = attack(nn.Sequential(model, Times(scale)), x, y, torch.arange(4), eps)
        torch.testing.assert_close(other.images, plain.images, rtol=0, atol=1e-9)
        assert torch.equal(other.forwards, plain.forwards)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_the_published_cross_entropy_is_masked_and_says_so():
    """A gradient of 1e-13 still has a direction; at a margin of 3000 float32 has none left."""
    oracle = masking_model(margin=3000.0)
    published = APGD(eps=1.0, rescale=False)
    assert not published.scale_invariant and APGD().scale_invariant and APGD(loss="dlr", rescale=False).scale_invariant
    assert stands(oracle, run(published, oracle)).any() and not stands(oracle, run(APGD(eps=1.0), oracle)).any()


def test_where_logits_tie_dlr_is_not_flat():
    """Second and third logit equal everywhere: DLR is 1 all over, and its gradient rounding."""
    oracle = affine(2, images=8)
    model = nn.Sequential(*oracle.model, Doubled())
    for loss in ("dlr", "targeted"):
        assert not stands(oracle, run(APGD(loss=loss, steps=30), oracle, 1.05 * oracle.l2, model)).any()


class Doubled(nn.Module):
    """Class 0 stays one, class 1 becomes four equal ones (and the other way round where it is larger)."""

    def forward(self, logits):
        top, low = logits.amax(1, keepdim=True), logits.amin(1, keepdim=True)
        first = (logits.argmax(1) == 0)[:, None]
        return torch.cat([torch.where(first, top, low), torch.where(first, low, top), low, low, low], 1)


def test_what_it_refuses_and_one_class():
    oracle = affine(3, images=2)
    with pytest.raises(UserError, match="needs a finite eps for every image"):
        run(APGD(), oracle, torch.tensor([0.1, torch.inf], dtype=torch.float64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    x = torch.rand(2, 1, 4, 4)
    for loss in LOSSES:
        attacked = APGD(loss=loss, eps=0.5)(model, x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
        assert torch.equal(attacked.images, x) and attacked.forwards.tolist() == [1, 1]


def test_it_is_named_on_the_command_line():
    stored = attack_from("apgd:loss=targeted,parallel=3")
    assert APGD.model_validate(stored) == APGD(loss="targeted", parallel=3)
    assert [APGD(loss=loss).label for loss in LOSSES] == [f"apgd:{loss}" for loss in LOSSES]
    with pytest.raises(UserError, match="did you mean 'apgd'"):
        attack_from("apdg")


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.35), ("linf", 0.07)])
def test_no_weaker_than_its_authors_package(digits, norm, eps):
    peer = AutoAttack(version="custom", attacks=("apgd-ce", "apgd-t"), norm=norm, eps=eps)
    theirs = stands(digits, run(peer, digits))
    budget = torch.full((60,), eps, dtype=torch.float64)
    ours = stands(digits, run(APGD(norm=norm), digits, budget))
    left = ours.nonzero().flatten()
    ours[left] = (run(APGD(norm=norm, loss="targeted"), digits, budget, at=left).images == digits.x[left]).flatten(1).all(1)
    assert ours.sum() <= theirs.sum() + 1
    assert 5 < theirs.sum() < 55


def test_the_skipped_targets_are_the_nearest_and_the_others_follow():
    """Of affine rows of different length the class of the second logit is farther than that of the third."""
    weight = torch.eye(4, 16) * torch.tensor([1.0, 1.0, 9.0, 2.0])[:, None]
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(torch.tensor([3.0, 1.0, 0.0, 0.5]))
    x, y = torch.full((1, 1, 4, 4), 0.1), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        logits = model(x)
    truth = ((logits[0, 0] - logits[0]).abs() / (weight[0] - weight).norm(dim=1))[1:].argsort() + 1
    attack = APGD(loss="targeted", eps=0.01, steps=2)
    for skipped in (1, 2):
        part = attack.model_copy(update={"skipped": skipped})
        with part.engaged(model, x, y, torch.arange(1)) as engine:
            aims = part._aims(engine, torch.arange(1))[0].tolist()
        assert aims[:skipped] == truth.tolist()[:skipped] and sorted(aims) == [1, 2, 3]
        found = part(model, x, y, torch.arange(1))
        assert int(found.backwards) == 2 * (3 - skipped) + 3  # of the runs, and to find which classes are near
