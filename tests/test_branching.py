"""Branch and bound: proves up to the true radius of small networks, and never beyond it."""

from functools import partial

import pytest
import torch
from test_sdp_crown import rows_of
from torch import nn

from robustbench_rkhs.certificates import SdpCrownCertificate
from robustbench_rkhs.relaxations.ascent import Search, optimised
from robustbench_rkhs.relaxations.branching import Split, Whole, branched, split
from robustbench_rkhs.relaxations.coupled_ascent import Choice
from robustbench_rkhs.relaxations.lagrangian import Tilt
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rows import doubled, kinks_of, started, valued

F64 = torch.float64


def small(seed):
    """A network of two inputs, whose nearest error a fine grid finds."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 8), nn.LeakyReLU(0.1), nn.Linear(8, 2)).double()
    for parameter in model.parameters():
        parameter.data *= 1.7
    axis = torch.linspace(-3, 3, 601, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():  # half of the plane belongs to each class
        model[4].bias[0] -= (model(grid)[:, 0] - model(grid)[:, 1]).median()
    x = torch.rand(6, 2, dtype=F64) * 2 - 1
    y = model(x).argmax(1)
    wrong = model(grid).argmax(1)[None] != y[:, None]
    nearest = torch.where(wrong, torch.cdist(x, grid), torch.inf).amin(1)
    return model, x, y, nearest.detach()


@pytest.mark.parametrize("seed", [0])
def test_the_true_radius_is_nearly_reached_and_never_passed(seed):
    model, x, y, nearest = small(seed)
    plain = branches = 0
    for at in (0, 2, 3, 5):
        true = float(nearest[at].clamp_max(1.0))
        for share in (0.9, 1.02):
            rows = rows_of(model, x[at : at + 1], y[at : at + 1], share * true, torch.tensor([[0, 1 - int(y[at])]]))
            tilts = optimised(rows, started(rows), torch.zeros(1, dtype=F64), Search(40))
            found = branched(rows, Choice(tilts, {}), torch.full((1,), 1e-6, dtype=F64), 400)
            if share > 1 and nearest[at] < 1:
                assert not found.proved
            elif share < 1:
                plain += bool(valued(rows, doubled(tilts), True)[0] > 0)
                branches += found.proved
    assert branches == 4 > plain


def test_both_sides_of_a_split_cover_the_part_and_hold_what_they_say():
    model, x, y, _ = small(0)
    rows = rows_of(model, x[:1], y[:1], 0.8, torch.tensor([[0, 1 - int(y[0])]]))
    first = kinks_of(rows.steps)[0]
    unsure = ((first.before.lower < 0) & (first.before.upper > 0)).flatten(1)[0].nonzero().flatten()
    regions = {step.path: Region(step.before.center, step.before.radius) for step in kinks_of(rows.steps)}
    none = torch.zeros(1, dtype=torch.long)
    parts, _ = split(regions, started(rows), Split(none, none, unsure[:1]))
    before = parts[first.path]
    unit = int(unsure[0])
    assert before.upper[0, unit] == 0 and before.lower[1, unit] == 0
    assert before.lower[0, unit] == first.before.lower[0, unit] and before.upper[1, unit] == first.before.upper[0, unit]
    others = [k for k in range(10) if k != unit]
    assert torch.equal(before.lower[:, others], first.before.lower[:, others].expand(2, -1))


def test_the_certificate_proves_more_with_parts_and_is_never_above_the_truth():
    model, x, y, nearest = small(0)
    asked, keys, radius = (0.25,), torch.arange(6), {}
    plain = partial(SdpCrownCertificate, search=False, steps=20, intervals=1, couplings=0)
    for domains in (0, 40):
        radius[domains] = plain(domains=domains)(model, x, y, keys, asked).radius
    assert (radius[40] < nearest).all() and (radius[40] >= radius[0] - 1e-9).all() and (radius[40] > radius[0]).any()


def test_a_part_begins_no_lower_than_the_whole():
    model, x, y, _ = small(0)
    rows = rows_of(model, x[:1], y[:1], 0.8, torch.tensor([[0, 1 - int(y[0])]]))
    tilts = doubled(optimised(rows, started(rows), torch.full((1,), 1e9, dtype=F64), Search(30)))
    whole, value = Whole(rows, None, None), valued(rows, tilts, False)[0]
    regions = {step.path: Region(step.before.center, step.before.radius) for step in kinks_of(rows.steps)}
    tried = higher = 0
    for layer, region in enumerate(regions.values()):
        for unit in ((region.lower < 0) & (region.upper > 0)).flatten(1)[0].nonzero().flatten().tolist():
            sides, own = split(regions, tilts, Split(*torch.tensor([[0], [layer], [unit]])))
            twice = {path: Tilt(*(part.repeat_interleave(2, 0) for part in tilt)) for path, tilt in tilts.items()}
            best, found = whole.better(whole.at(sides), own, twice)
            assert (found >= value - 1e-12).all()
            torch.testing.assert_close(valued(whole.at(sides), best, False)[0], found)
            tried, higher = tried + 1, higher + bool((found > value + 1e-6).any())
    assert tried > 2 and higher > 0
