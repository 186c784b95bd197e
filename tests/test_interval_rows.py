"""Bounds over boxes from intervals alone: below the truth for any choice, and close to it after branch and bound."""

import pytest
import torch
from torch import nn

from robustbench_rkhs.certificates import CrownCertificate, SdpCrownCertificate
from robustbench_rkhs.layers import Residual
from robustbench_rkhs.relaxations import ball
from robustbench_rkhs.relaxations.ascent import Search
from robustbench_rkhs.relaxations.full_crown import proved_trace
from robustbench_rkhs.relaxations.interval_branching import Pieces, chosen, inputs_at, parted, split
from robustbench_rkhs.relaxations.interval_rows import Ends, Lean, begun, framed, interval_bounds, leaned, one_row, whole
from robustbench_rkhs.relaxations.linear_bounds import Lines, margin_rows
from robustbench_rkhs.relaxations.renewed import renewed

F64 = torch.float64


def residual(seed, inputs=2):
    """relu(A relu(B z) + z), with a LeakyReLU and a pair of classes, half of the plane each."""
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 10))
    model = nn.Sequential(nn.Linear(inputs, 10), nn.ReLU(), Residual(inner, nn.Identity()), nn.LeakyReLU(0.1), nn.Linear(10, 2))
    model = model.double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(1.7)
    points = 6 * torch.rand(4000, inputs, dtype=F64) - 3
    model[4].bias[0] -= (model(points)[:, 0] - model(points)[:, 1]).median()
    return model


def of(model, x, y, eps):
    """The frame and the row f_y - f_other over the box around one image."""
    found = proved_trace(model, ball(x, eps, "linf", "none"), True)
    return framed(found.steps), one_row(margin_rows(y, found), 1 - int(y[0]))


def sampled(x, eps, count=4000):
    corners = (2 * torch.randint(0, 2, (count, x.shape[1])) - 1).double()
    return x + eps * torch.cat([corners, 2 * torch.rand(count, x.shape[1], dtype=F64) - 1])


@pytest.mark.parametrize("seed", range(4))
def test_any_slopes_and_multipliers_are_sound_on_every_part(seed):
    model, x = residual(seed, 5), torch.rand(1, 5, dtype=F64)
    y = model(x).argmax(1)
    frame, line = of(model, x, y, 0.4)
    points = sampled(x, 0.4)
    margins = model(points).gather(1, y.expand(len(points), 1)) - model(points).gather(1, 1 - y.expand(len(points), 1))
    ends = whole(frame, 1)
    pieces = Pieces(ends, begun(ends), torch.zeros(1, dtype=F64))
    paths, cuts = list(frame.kinks), 0
    for unit in torch.randperm(sum(len(one.units) for one in frame.kinks.values()))[:3].tolist():
        pieces = split(pieces, torch.full((len(pieces.value),), unit), paths)
    pieces = pieces._replace(ends=renewed(frame, frame.single(), pieces.ends, Search(2, 0.3), paths[1:]))
    many = Lines(line.slopes.expand(1, 8, 2), line.offsets.expand(1, 8))
    inputs = inputs_at(frame.steps, points)
    inside = torch.ones(8, len(points), dtype=torch.bool)
    for path, one in pieces.ends.items():
        values = inputs[path].flatten(1)[:, frame.kinks[path].units]
        inside &= ((values >= one.lower[:, None]) & (values <= one.upper[:, None])).all(2)
    assert inside.any(0).all()  # the parts, their intervals bounded anew, still cover the box
    for scale in (0.0, 0.3, 3.0):
        leans = {path: Lean(torch.rand_like(one.slope), scale * torch.rand_like(one.pull)) for path, one in pieces.leans.items()}
        bound, _ = interval_bounds(frame, many, pieces.ends, leans, True)
        least = torch.where(inside, margins[:, 0], torch.inf).amin(1)
        assert (bound <= least).all()
        cuts += int((bound < least).sum())
    assert cuts


def test_slopes_and_multipliers_gain_and_keep_the_best():
    model, x = residual(0, 5), torch.rand(1, 5, dtype=F64)
    y = model(x).argmax(1)
    frame, line = of(model, x, y, 0.3)
    ends = whole(frame, 1)
    quick, target = Lines(line.slopes.float(), line.offsets.float()), torch.full((1,), torch.inf)
    values = []
    for steps in (0, 30):
        leans = leaned(frame.single(), quick, ends, begun(ends), target, Search(steps, 0.1))
        values.append(float(interval_bounds(frame, line, ends, leans, True)[0]))
    assert values[1] > values[0] + 1e-3
    closer = renewed(frame, frame.single(), ends, Search(5, 0.3), list(frame.kinks))
    leans = leaned(frame.single(), quick, closer, begun(closer), target, Search(30, 0.1))
    assert float(interval_bounds(frame, line, closer, leans, True)[0]) > values[1]
    points = inputs_at(frame.steps, sampled(x, 0.3))
    for path, one in closer.items():
        values = points[path].flatten(1)[:, frame.kinks[path].units]
        assert (values >= one.lower).all() and (values <= one.upper).all()


def nearest(model, x, y):
    """The linf distance of the nearest error on a fine grid."""
    axis = torch.linspace(-3, 3, 601, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    away = (grid[None] - x[:, None]).abs().amax(2)
    return torch.where(model(grid).argmax(1)[None] != y[:, None], away, torch.inf).amin(1)


def test_parts_reach_the_true_radius_and_never_pass_it():
    model = residual(1)
    x = torch.rand(3, 2, dtype=F64) * 2 - 1
    y = model(x).argmax(1)
    true, gained = nearest(model, x, y), 0
    for at in range(2):
        for share in (0.9, 1.02):
            if true[at] > 2:
                continue
            frame, line = of(model, x[at : at + 1], y[at : at + 1], share * float(true[at]))
            ends = whole(frame, 1)
            found = parted(frame, line, ends, begun(ends), 1e-6, 40)
            assert found.proved == (share < 1)
            gained += found.proved and bool(interval_bounds(frame, line, ends, begun(ends), True)[0] <= 0)
    assert gained


def test_a_part_whose_signs_are_all_known_is_left():
    model, x = residual(0), torch.zeros(1, 2, dtype=F64)
    frame, line = of(model, x, model(x).argmax(1), 1e-6)
    ends = {path: Ends(one.lower.clamp_min(0), one.upper) for path, one in whole(frame, 1).items()}
    quick = Lines(line.slopes.float(), line.offsets.float())
    assert chosen(frame.single(), quick, Pieces(ends, begun(ends), torch.zeros(1))) is None


def test_the_certificate_in_linf_proves_more_than_crown_and_no_more_than_is_true():
    model = residual(2)
    x = torch.rand(3, 2, dtype=F64) * 2 - 1
    y, keys = model(x).argmax(1), torch.arange(3)
    true, asked = nearest(model, x, y), (0.02, 0.05, 0.1, 0.2, 0.4)
    radii = [
        one(model, x, y, keys, asked).radius
        for one in (CrownCertificate(norm="linf", search=False), SdpCrownCertificate(norm="linf", search=False))
    ]
    assert (radii[1] <= true).all() and (radii[1] >= radii[0]).all() and (radii[1] > radii[0]).any()
    reachable = torch.tensor(asked, dtype=F64)[None].expand(3, -1)
    assert (radii[1] >= torch.where(reachable < true[:, None] - 0.01, reachable, 0.0).amax(1)).all()
