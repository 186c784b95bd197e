"""Parts of a fixed pattern: their least value is found and never passed, and empty ones are proved."""

import pytest
import torch
from test_branching import small
from test_couplings import chain_of, links
from test_sdp_crown import rows_of

from robustbench_rkhs.relaxations.branching import Whole
from robustbench_rkhs.relaxations.fixed_pattern import fixed_tilts
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rows import doubled, kinks_of, valued

F64 = torch.float64
EPS = 0.5


def cut(rows, ways):
    """The rows once for each way, where its splits cut the intervals."""
    regions = {}
    for number, step in enumerate(kinks_of(rows.steps)):
        low, high = (end.repeat(len(ways), 1) for end in (step.before.lower, step.before.upper))
        for at, way in enumerate(ways):
            for layer, unit, side in way:
                if layer == number:
                    (low if side else high)[at, unit] = 0
        regions[step.path] = Region((low + high) / 2, (high - low) / 2)
    return Whole(rows, None, None).at(regions)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_least_value_of_each_part_is_reached_and_empty_parts_are_proved(seed):
    model, x, y, _ = small(seed)
    label = int(y[0])
    rows = rows_of(model, x[:1], y[:1], EPS, torch.tensor([[0, 1 - label]]))
    steps = kinks_of(rows.steps)
    unsure = [(k, u) for k, step in enumerate(steps) for u in range(step.before.center.shape[1]) if _free(step, u)]
    axis = torch.linspace(-EPS, EPS, 801, dtype=F64)
    ball = torch.cartesian_prod(axis, axis)
    points = x[0] + ball[ball.norm(dim=1) <= EPS]
    with torch.no_grad():
        before = [model[:1](points), model[:3](points)]
        margin = model(points)[:, label] - model(points)[:, 1 - label]
    signs = torch.stack([before[k][:, u] for k, u in unsure], 1)
    generator = torch.Generator().manual_seed(seed)
    real = (signs[torch.randint(len(points), (12,), generator=generator)] > 0).int()
    made = torch.randint(0, 2, (12, len(unsure)), generator=generator).int()  # nearly all of these are empty
    sides = torch.cat([real, made])
    ways = [tuple((k, u, int(side)) for (k, u), side in zip(unsure, one, strict=True)) for one in sides]
    ways[0] = tuple(reversed(ways[0]))  # in any order
    parts = cut(rows, ways)
    tilts = fixed_tilts(parts, ways, chain_of(model, x[:1], links(rows.steps)).links, 1e3)
    value = valued(parts, doubled(tilts), True)[0]
    within = ((2 * sides[:, None] - 1) * signs[None]).amin(2)  # how deep each point lies in each part
    holds = (within >= 0).any(1)
    assert 12 <= holds.sum() < 24 and len(unsure) >= 4
    for at in range(24):
        if holds[at]:
            least = margin[within[at] >= 0].min()
            assert least - 0.05 <= value[at] <= least
        elif within[at].max() < -0.02:
            assert value[at] > 0


def _free(step, unit):
    return bool(step.before.lower[0, unit] < 0 < step.before.upper[0, unit])
