"""The Square attack: its draws, patterns and windows by definition, what it asks the model, and pyautoattack's as an oracle."""

import copy
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import affine, constant_model, masking_model
from torch import nn

from robustbench_rkhs.attacks.ball import distances, ends
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.attacks.square import proposals
from robustbench_rkhs.attacks.square.attack import Square
from robustbench_rkhs.attacks.square.l2 import Pyramids
from robustbench_rkhs.attacks.square.linf import Stripes
from robustbench_rkhs.attacks.square.patches import Picture, halves, pyramid, share, sides, tiles
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.counter_rng import uniforms

SHAPES = [(1, 6, 6), (3, 5, 9), (2, 9, 4), (1, 1, 1), (3, 1, 7), (7,), (1,), (12,), (6, 4), (2, 3, 2, 2)]
NORMS = ["l2", "linf"]


def run(attack, model, x, y, eps=None, keys=None):
    eps = None if eps is None else torch.as_tensor(eps, dtype=torch.float64).expand(len(x)).clone()
    return attack(model, x, y, torch.arange(len(x)) if keys is None else keys, eps)


def broken(model, attacked, y):
    with torch.no_grad():
        return model(attacked.images).argmax(1) != y


class Recording(nn.Module):
    """Keeps every batch it is asked about."""

    def __init__(self, model):
        super().__init__()
        self.model, self.queried = model, []

    def forward(self, x):
        self.queried.append(x.clone())
        return self.model(x)


class Through(nn.Module):
    """A function of another model's logits."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.function(self.model(x))


# Draws and ends


def test_uniform_numbers_are_counted_by_the_image():
    keys = torch.tensor([5, 3, 2**40])
    found = uniforms(keys, seed=1, count=1000)
    assert found.shape == (3, 1000) and found.min() >= 0 and found.max() < 1
    assert torch.equal(uniforms(keys.flip(0)[1:], 1, 1000), found.flip(0)[1:])
    assert torch.equal(uniforms(keys, 1, 400), found[:, :400])  # a shorter draw is the head of a longer one
    assert (found.mean(1) - 0.5).abs().max() < 0.05 and torch.corrcoef(found).fill_diagonal_(0).abs().max() < 0.15
    for other in (uniforms(keys, 2, 1000), uniforms(keys, 1, 1000, draw=1)):
        assert (other != found).float().mean() > 0.99
    assert uniforms(keys[:0], 1, 4).shape == (0, 4)


@given(st.floats(0, 1, width=32), st.floats(0, 2), st.sampled_from([torch.float32, torch.float64]))
def test_the_ends_are_the_last_numbers_inside_the_ball(pixel, eps, dtype):
    x, budget = torch.tensor([[pixel]], dtype=dtype), torch.tensor([eps], dtype=torch.float64)
    for box in ("unit", "none"):
        for end, away in zip(ends(x, budget, box), (-torch.inf, torch.inf), strict=True):
            assert distances(x, end, "linf") <= eps and (box == "none" or 0 <= end <= 1)
            beyond = torch.nextafter(torch.nextafter(end, torch.full_like(end, away)), torch.full_like(end, away))
            assert distances(x, beyond, "linf") > eps * (1 - 1e-7) or (box == "unit" and end in (0, 1))


# Windows


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 3), (3, 3), (2, 5), (7, 3), (6, 6)])
def test_pyramids_are_the_papers_sum(height, width):
    n = max(height, width) // 2
    for r in range(1, height + 1):
        for s in range(1, width + 1):
            inside = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
            expected = sum(1 / (n + 1 - k) ** 2 for k in range(inside + 1))
            assert pyramid(height, width)[r - 1, s - 1].item() == pytest.approx(expected)
    both = halves(height, width)
    assert torch.allclose(both.flatten(1).norm(dim=1), torch.ones(2, dtype=torch.float64))
    if height > 1:
        assert (both[0, : height // 2] > 0).all() and (both[0, height // 2 :] < 0).all()
    if width > 1:
        assert (both[1, :, : width // 2] > 0).all() and (both[1, :, width // 2 :] < 0).all()


def test_the_tiles_cover_the_picture_once():
    for height, width in ((10, 15), (8, 8), (32, 32), (3, 7), (1, 1)):
        number, pattern, many = tiles(height, width)
        assert many == min(height, 5) * min(width, 5) and set(number.tolist()) == set(range(many))
        assert (pattern != 0).all()
        assert torch.allclose(
            torch.zeros(many, dtype=torch.float64).index_add(0, number, pattern[0] ** 2), torch.ones(many).double()
        )


def test_the_schedule_is_the_published_one():
    from pyautoattack.square import SquareAttack

    for queries in (37, 500, 5000):
        library = SquareAttack(None, n_queries=queries, p_init=0.8)
        library.rescale_schedule = True
        for query in range(1, queries):
            assert share(0.8, query, queries) == library.p_selection(query)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_holds_the_image_and_its_windows(shape):
    picture, x = Picture.of(shape), torch.rand(3, *shape)
    assert torch.equal(picture.images(picture.cells(x)), x)
    assert 0 <= picture.padding < picture.width and (len(shape) not in (2, 3) or picture.padding == 0)
    for smooth in (False, True):
        for query in (1, 20, 400, 9999):
            height, width = sides(0.8, query, 10_000, picture, smooth)
            assert 1 <= height <= picture.height and 1 <= width <= picture.width


def test_the_windows_cover_their_share():
    assert sides(0.8, 1, 10_000, Picture.of((3, 32, 32)), False) == (29, 29)
    assert sides(0.8, 9_999, 10_000, Picture.of((3, 32, 32)), False) == (1, 1)
    assert sides(0.8, 9_999, 10_000, Picture.of((3, 32, 32)), True) == (3, 3)
    assert sides(0.8, 9_999, 10_000, Picture.of((900,)), True) == (1, 1)  # no picture: nothing is smooth
    assert sides(0.8, 1, 10_000, Picture.of((1, 1, 20)), False) == (1, 16)
    assert sides(0.5, 1, 10_000, Picture.of((1, 40, 2)), False) == (20, 2)


# What it asks


@pytest.mark.parametrize("box", ["unit", "none"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_question_is_inside_and_changes_one_window(norm, shape, box, dtype):
    """A constant model takes every proposal, so that each question is the last one and a window."""
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x[0].clamp_(0, 0), x[1].clamp_(1, 1)
    eps = torch.tensor([0.004, 0.3, 1.3, 0.05], dtype=torch.float64)
    model, picture, queries = Recording(constant_model(3, answer=1)), Picture.of(shape), 40
    attacked = run(Square(norm=norm, box=box, queries=queries), model, x, torch.ones(4, dtype=torch.int64), eps)
    assert torch.equal(attacked.images, x) and attacked.forwards.tolist() == [queries + 1] * 4 and not attacked.backwards.any()
    cells = [picture.cells(queried) for queried in model.queried[1:]]
    moved = 0
    for query, (queried, now) in enumerate(zip(model.queried[1:], cells, strict=True)):
        away = distances(x, queried, norm)
        assert queried.isfinite().all() and (away <= eps).all()
        assert box == "none" or (queried.min() >= 0 and queried.max() <= 1)
        if query and (norm == "linf" or box == "none"):
            height, width = sides(0.8, query, queries, picture, norm == "l2")
            changed = (now != cells[query - 1]).view(4, picture.channels, -1).any(1).sum(1)
            assert (changed <= (1 if norm == "linf" else 2) * height * width).all()
            moved += int((changed > 0).sum())
        if norm == "linf":
            low, high = ends(x, eps, box)
            assert ((queried == low) | (queried == high)).all()
        elif box == "none":  # a window may lie on padding, which is no pixel: what it was to hold comes back with the next one
            assert torch.allclose(away, eps, rtol=1e-3) if picture.padding == 0 else (away > 0.9 * eps).any()
    assert moved > 0 or box == "unit" or math.prod(shape) == 1


@pytest.mark.parametrize("norm", NORMS)
def test_the_outcome_does_not_depend_on_the_company(norm):
    """Alone, in another order, in other batches: the same image to float64's noise, after as many passes."""
    oracle = affine(4, (3, 5, 6), images=9)
    model, x, y, keys = copy.deepcopy(oracle.model).double(), oracle.x.double(), oracle.y, torch.arange(9) + 50
    eps = oracle.distance(norm) * (1.7 if norm == "l2" else 1.1)
    attack = Square(norm=norm, queries=260, seed=3)
    together = run(attack, model, x, y, eps, keys)
    fell = broken(model, together, y)
    assert fell.any() and not fell.all()
    for rows in (torch.tensor([4]), torch.tensor([8, 2, 0])):
        for size in (256, 2)[: len(rows)]:
            part = run(attack.model_copy(update={"batch_size": size}), model, x[rows], y[rows], eps[rows], keys[rows])
            assert torch.allclose(part.images, together.images[rows], atol=1e-9, rtol=0)
            assert (part.forwards - together.forwards[rows]).abs().max() <= 1  # that noise may decide about a query
    other = run(attack.model_copy(update={"seed": 4}), model, x, y, eps, keys)
    assert not torch.equal(other.forwards, together.forwards)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_that_fell_is_asked_about_no_more(norm):
    oracle = affine(3, (1, 4, 4), images=8)
    model = Recording(oracle.model)
    eps = oracle.distance(norm) * torch.tensor([2.5, 0.9] * 4)
    attacked = run(Square(norm=norm, queries=100, restarts=2), model, oracle.x, oracle.y, eps)
    fell = broken(oracle.model, attacked, oracle.y)
    assert fell.tolist() == [True, False] * 4
    assert sum(len(queried) for queried in model.queried) == attacked.forwards.sum()
    assert attacked.forwards[1::2].min() >= 201 and attacked.forwards[::2].max() < 101
    gone = torch.zeros(8, dtype=torch.bool)
    for queried in model.queried:
        image = torch.cdist(queried.flatten(1), oracle.x.flatten(1)).argmin(1)
        assert not gone[image].any()
        gone[image[model.model(queried).argmax(1) != oracle.y[image]]] = True
    assert torch.equal(gone, fell)


# Several proposals at once


def wavy(shape, classes=4, images=5, steep=1.0):
    """A float64 network that no plane describes and whose answers are the same bits in any batch, images, its answers as labels."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    first, second = steep * draw(math.prod(shape), 12), draw(12, classes)
    model = Through(nn.Flatten(), lambda flat: torch.stack([torch.sin(row @ first) @ second for row in flat]))
    x = torch.rand(images, *shape, generator=generator, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def both(monkeypatch, work):
    """What `work` gives where proposals are asked one by one, and as they are asked."""
    with monkeypatch.context() as patch:
        patch.setattr(proposals, "BUNCH", 1)
        alone = work()
    monkeypatch.setattr(proposals, "PATIENCE", 4)  # so that a short search asks many at once
    return alone, work()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "images"), [((1, 8, 8), 3), ((3, 5, 9), 4), ((2, 9, 4), 1), ((12,), 3), ((6, 4), 40)])
def test_an_image_moves_as_if_asked_one_by_one(norm, shape, images, monkeypatch):
    model, x, y = wavy(shape, images=images)
    picture, kind, sizes = Picture.of(shape), Stripes if norm == "linf" else Pyramids, []
    windows = [sides(0.8, query, 300, picture, kind.smooth) for query in range(300)]

    def walked():
        recording = Recording(model)
        with torch.no_grad():
            eps = torch.full((images,), 1e-4, dtype=torch.float64)
            engine = Engine(recording, x, y, torch.arange(images), norm=norm, box="unit", eps=eps, batch_size=64)
            at, zero = torch.arange(images), torch.zeros_like(picture.cells(x))
            found = kind(engine, picture, at, 7, zero, torch.full((images,), torch.inf).double(), torch.zeros_like(at))
            found.go(0, windows)
        sizes.append([len(queried) for queried in recording.queried])
        return found, engine

    (alone, one), (found, many) = both(monkeypatch, walked)
    assert not many.broken.any() and torch.equal(found.at, alone.at)  # so near to the image that nothing falls
    assert torch.allclose(found.state, alone.state, rtol=0, atol=1e-13)
    assert torch.allclose(found.lowest, alone.lowest, rtol=0, atol=1e-11)
    assert (one.forwards == 301).all() and (many.forwards > 301).any() and (many.forwards >= 301).all()
    assert (many.forwards <= 301 + 300 * 2 / proposals.PATIENCE).all()
    assert set(sizes[0]) == {images} and sum(sizes[1]) == many.forwards.sum() and max(sizes[1]) <= 64
    assert len(sizes[1]) < len(sizes[0])


@pytest.mark.parametrize("norm", NORMS)
def test_what_falls_to_one_by_one_falls_to_several_at_once(norm, monkeypatch):
    model, x, y = wavy((1, 6, 6), images=40, steep=0.5)
    attack = Square(norm=norm, queries=300)
    eps = torch.linspace(0.1, 0.5, 40, dtype=torch.float64) * (1 if norm == "l2" else 0.2)
    alone, found = both(monkeypatch, lambda: run(attack, model, x, y, eps))
    fell, falls = broken(model, alone, y), broken(model, found, y)
    late = fell & (alone.forwards > 30)
    assert late.any() and not fell.all() and not (fell & ~falls).any()
    assert (found.forwards <= alone.forwards * (1 + 2 / proposals.PATIENCE) + proposals.BUNCH).all()
    assert (found.forwards[~falls] > 300).all()
    same = falls == fell
    assert torch.allclose(found.images[same & ~fell], x[same & ~fell])
    for row in late.nonzero().flatten().tolist():  # alone in the batch: the same image after as many passes
        single = run(attack, model, x[row : row + 1], y[row : row + 1], eps[row : row + 1], torch.tensor([row]))
        assert torch.allclose(single.images[0], found.images[row], atol=1e-9, rtol=0)
        assert single.forwards[0] == found.forwards[row]


def test_a_flat_answer_is_walked_over_one_by_one():
    model, x = Recording(constant_model(3, answer=1)), torch.rand(2, 1, 6, 6)
    run(Square(eps=0.1, queries=300), model, x, torch.ones(2, dtype=torch.int64))
    assert [len(queried) for queried in model.queried] == [2] * 301


# What it finds


@pytest.mark.parametrize("norm", NORMS)
def test_the_scale_of_the_logits_changes_no_bit(norm):
    oracle = affine(4, (2, 5, 5), images=8)
    attack, eps = Square(norm=norm, queries=100), oracle.distance(norm) * 1.5
    plain = run(attack, oracle.model, oracle.x, oracle.y, eps)
    for power in (-13, 13):
        scaled = run(attack, Through(oracle.model, lambda logits, by=2.0**power: logits * by), oracle.x, oracle.y, eps)
        assert torch.equal(scaled.images, plain.images) and torch.equal(scaled.forwards, plain.forwards)


@pytest.mark.parametrize(("norm", "factor"), [("l2", 2.0), ("linf", 1.4)])
def test_logits_rounded_to_a_grid_hide_nothing(norm, factor):
    """Their gradient is zero everywhere: PGD, started anywhere, learns nothing; Square sees the steps and crosses the flats."""
    oracle = affine(3, (1, 4, 4), images=16)
    logits = oracle.model(oracle.x)
    grid = (logits.amax(1) - logits.median(1).values).min().item() / 1.5
    last = torch.eye(3)  # a layer after the rounding, or gradient attacks would look through it
    rounded = Through(oracle.model, lambda logits: nn.functional.linear((logits / grid).round() * grid, last))
    right = rounded(oracle.x).argmax(1) == oracle.y
    x, y, exact = oracle.x[right], oracle.y[right], oracle.distance(norm)[right]
    eps = factor * exact.max().item()
    blind = PGD(norm=norm, eps=eps, steps=20)(rounded, x, y, torch.arange(len(x)))
    assert not broken(rounded, blind, y).any()
    assert len(x) > 8 and broken(rounded, run(Square(norm=norm, eps=eps, queries=1000), rounded, x, y), y).all()


def test_a_margin_of_30_hides_nothing():
    oracle = masking_model(images=4)
    attack = Square(norm="linf", eps=1.3 * oracle.linf.max().item(), queries=500)
    assert broken(oracle.model, run(attack, oracle.model, oracle.x, oracle.y), oracle.y).all()


@pytest.mark.parametrize("norm", NORMS)
def test_an_answer_that_is_nan_away_from_the_image_is_found(norm):
    x = torch.full((2, 1, 5, 5), 0.5)
    right = torch.tensor([1.0, 0.0])
    sick = Through(nn.Flatten(), lambda flat: torch.where((flat == 0.5).all(1, keepdim=True), right, right * torch.nan))
    attacked = run(Square(norm=norm, eps=0.1), sick, x, torch.zeros(2, dtype=torch.int64))
    assert attacked.images.isfinite().all() and (distances(x, attacked.images, norm) > 0).all()
    assert attacked.forwards.tolist() == [2, 2]


def test_what_it_refuses_and_what_there_is_nothing_to_do_for():
    oracle = affine(3, images=3)
    with pytest.raises(UserError, match="needs an eps"):
        run(Square(), oracle.model, oracle.x, oracle.y)
    with pytest.raises(UserError, match="expects a finite eps"):
        run(Square(), oracle.model, oracle.x, oracle.y, torch.inf)
    one = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    attacked = run(Square(eps=1.0), one, oracle.x, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(attacked.images, oracle.x) and attacked.forwards.tolist() == [1] * 3
    transposed = oracle.x.transpose(2, 3)
    assert not transposed.is_contiguous()
    assert run(Square(queries=5, eps=0.01), oracle.model, transposed, oracle.y).images.shape == oracle.x.shape


# Against pyautoattack


@pytest.mark.parametrize(("norm", "budgets"), [("l2", (0.5, 0.7)), ("linf", (0.09, 0.12))])
def test_no_weaker_than_pyautoattack_at_as_many_queries(digits, norm, budgets):
    """Random search: the images left standing are compared in sum over two eps and two seeds, two of them allowed for chance."""
    from pyautoattack import AutoAttack as Library

    logging.getLogger("auto-attack").disabled = True
    model, x, y = digits
    ours = theirs = 0
    for eps in budgets:
        for seed in (0, 1):
            attacked = run(Square(norm=norm, eps=eps, queries=300, seed=seed), model, x, y)
            assert distances(x, attacked.images, norm).max() <= eps
            ours += int((~broken(model, attacked, y)).sum())
            with torch.random.fork_rng():
                library = Library(model, norm={"l2": "L2", "linf": "Linf"}[norm], eps=eps, seed=seed, device="cpu")
                library.attacks_to_run, library.square.n_queries = ["square"], 300
                found, _ = library.run_standard_evaluation(x, y, batch_size=60)
            theirs += int((model(found).argmax(1) == y).sum())
    assert 0 < ours <= theirs + 2 and theirs < 4 * len(x)
