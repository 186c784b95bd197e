"""Projections on a hyperplane inside the box: against bisection in float64, linear programming and the optimality conditions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from robustbench_rkhs.attacks import hyperplane


def towards(points, normal, rise, norm, box):
    """One point a row."""
    return hyperplane.offsets(points[:, None], normal, rise[:, None], norm, box)[:, 0]


def problem(seed, size, rows=16, zeros=0.3):
    """Points of the box, some coordinates on its walls, and normals of which some entries are zero."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(rows, size, generator=generator, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)
    normal = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    normal[torch.rand(rows, size, generator=generator) < zeros] = 0
    return points, normal, generator


def bisected(points, normal, rise, norm):
    """The same by bisection on the multiplier: clip(x + t w) for l2, clip(x + t sign w) for linf, a point and rise at a time."""
    found = []
    for x, w, c in zip(points, normal, rise, strict=True):
        way = (w if norm == "l2" else w.sign()) * (1 if c >= 0 else -1)

        def moved(t, x=x, way=way):
            return (x + t * way).clamp(0, 1) - x

        low, high = 0.0, 1.0 / max(way.abs()[way != 0].min().item(), 1e-12) if (way != 0).any() else 1.0
        for _ in range(90):
            middle = (low + high) / 2
            low, high = (middle, high) if abs(w @ moved(middle)) < abs(c) else (low, middle)
        found.append(moved(high))
    return torch.stack(found)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), share=st.floats(-1.5, 1.5))
def test_the_projection_is_that_of_bisection(norm, seed, size, share):
    """`share` of what the box allows: beyond one, the plane cannot be reached and the answer is the corner the way of w."""
    points, normal, _ = problem(seed, size, rows=4)
    ahead = (normal * (normal.sign() - 2 * points + 1) / 2).sum(1)
    behind = (normal * (normal.sign() + 2 * points - 1) / 2).sum(1)
    rise = share * (ahead if share >= 0 else behind)
    offset = towards(points, normal, rise, norm, "unit")
    assert torch.allclose(offset, bisected(points, normal, rise, norm), atol=1e-9)
    assert ((points + offset) >= -1e-12).all() and ((points + offset) <= 1 + 1e-12).all()
    if abs(share) <= 1:
        assert torch.allclose((normal * offset).sum(1), rise, atol=1e-9)
    else:
        corner = torch.where(normal * rise[:, None] > 0, 1.0, 0.0).to(points)
        moves = (normal != 0) & (rise[:, None] != 0)
        assert torch.equal(points + offset, torch.where(moves, corner, points))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_other_point_of_the_plane_in_the_box_is_nearer(norm):
    """l2: the projection's own inequality <x - p, z - p> <= 0 for points z of the set; linf: the value of a linear programme."""
    points, normal, generator = problem(5, 7, rows=8)
    inside = torch.rand(8, 7, generator=generator, dtype=torch.float64)
    rise = (normal * (inside - points)).sum(1)
    offset = towards(points, normal, rise, norm, "unit")
    if norm == "l2":
        other = inside - points - offset
        assert ((-offset * other).sum(1) <= 1e-9).all()
        return
    for x, w, c, found in zip(points, normal, rise, offset, strict=True):
        bounds = [(-v.item(), 1 - v.item()) for v in x] + [(0, None)]
        cost = [0.0] * 7 + [1.0]
        above = torch.cat([torch.cat([torch.eye(7), -torch.ones(7, 1)], 1), torch.cat([-torch.eye(7), -torch.ones(7, 1)], 1)])
        best = linprog(cost, above.numpy(), [0.0] * 14, [[*w.tolist(), 0.0]], [c.item()], bounds)
        assert found.abs().max().item() == pytest.approx(best.fun, abs=1e-7)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", ["unit", "none"])
@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 1e37])
def test_any_scale_of_the_normal_gives_the_same_offset(norm, box, scale):
    points, normal, _ = problem(3, 9)
    points, normal = points.float(), normal.float()
    rise = 0.3 * torch.linspace(-1, 1, 16)
    plain, scaled = (towards(points, normal * factor, rise * factor, norm, box) for factor in (1.0, scale))
    assert torch.allclose(plain, scaled, atol=1e-5) and plain.abs().max() > 0.01


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", ["unit", "none"])
def test_without_a_normal_there_is_no_offset(norm, box):
    points = torch.rand(3, 4)
    assert not towards(points, torch.zeros_like(points), torch.tensor([1.0, -1.0, 0.0]), norm, box).any()
    assert towards(points[:0], points[:0], torch.zeros(0), norm, box).shape == (0, 4)
    wild = towards(points, torch.full_like(points, 1e-38), torch.tensor([1e30, -torch.inf, torch.nan]), norm, box)
    assert wild.isfinite().all() and not wild[2].any()


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
def test_without_a_box_the_length_is_the_plain_formula(norm, dual):
    points, normal, _ = problem(1, 6)
    rise = torch.linspace(-3, 3, 16, dtype=torch.float64)
    offset = towards(points, normal, rise, norm, "none")
    assert torch.allclose((normal * offset).sum(1), rise)
    assert torch.allclose(offset.norm(2 if norm == "l2" else torch.inf, 1), rise.abs() / normal.norm(dual, 1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_row_does_not_depend_on_its_neighbours(norm):
    points, normal, _ = problem(7, 11)
    rise = torch.linspace(-2, 2, 16, dtype=torch.float64)
    together = towards(points, normal, rise, norm, "unit")
    for i in (0, 5, 15):
        alone = towards(points[[i]], normal[[i]], rise[[i]], norm, "unit")
        assert torch.allclose(alone[0], together[i], atol=1e-14, rtol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", ["unit", "none"])
def test_several_points_share_a_normal(norm, box):
    points, normal, generator = problem(9, 6)
    others, rise = torch.rand(16, 6, generator=generator, dtype=torch.float64), torch.linspace(-2, 2, 32, dtype=torch.float64)
    both = hyperplane.offsets(torch.stack([points, others], 1), normal, rise.view(16, 2), norm, box)
    assert torch.equal(both[:, 0], towards(points, normal, rise[::2], norm, box))
    assert torch.equal(both[:, 1], towards(others, normal, rise[1::2], norm, box))
