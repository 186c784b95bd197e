"""Cholesky tile by tile: it completes exactly where the whole matrix is positive definite, whatever its zeros."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_rkhs.lipschitz import elimination


@settings(max_examples=60, deadline=None)
@given(
    points=st.integers(1, 9),
    channels=st.integers(1, 4),
    tile=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.15, 0.4, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_it_completes_exactly_above_the_largest_eigenvalue(points, channels, tile, density, seed):
    generator = torch.Generator().manual_seed(seed)
    meets = torch.rand(points, points, generator=generator) < density
    meets = meets | meets.T  # not always with itself: a point that nothing reads
    matrix = torch.randn(points, channels, points, channels, dtype=torch.float64, generator=generator)
    matrix = matrix * meets[:, None, :, None]
    whole = matrix.reshape(points * channels, -1)
    whole = whole + whole.T
    gram = whole.view(points, channels, points, channels).transpose(1, 2)
    lower = torch.ones(points, points, dtype=torch.bool).tril()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "TILE", tile)
        blocks, beside = elimination.tiles(torch.where(lower[:, :, None, None], gram, 0.0), meets)
    top = torch.linalg.eigvalsh(whole).max().item()
    scale = whole.abs().max().item() + 1e-9
    assert elimination.completes(blocks, beside, top + 1e-9 * scale)
    assert not elimination.completes(blocks, beside, top - 1e-9 * scale)
    assert elimination.completes(blocks, beside, 1e-300) == (top < 0 or not whole.any())


def test_the_tiles_of_a_grid_need_far_fewer_products_than_a_dense_factorisation(monkeypatch):
    """Counted: 4 by 4 points whose blocks reach two points in each direction."""
    monkeypatch.setattr(elimination, "TILE", 1)
    place = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    meets = ((place[:, None] - place[None]).abs() <= 2).all(-1)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(16, 16, dtype=torch.float64, generator=generator) * meets
    blocks, beside = elimination.tiles((matrix + matrix.T).tril()[:, :, None, None], meets)
    counted = 0
    original = elimination._update

    def update(left, others, solved):
        nonlocal counted
        counted += len(others) * (len(others) + 1) // 2
        original(left, others, solved)

    monkeypatch.setattr(elimination, "_update", update)
    assert elimination.completes(blocks, beside, 40.0)
    assert counted < 0.6 * sum(n * (n + 1) // 2 for n in range(16))


def test_a_matrix_with_nan_is_never_below_anything():
    gram = torch.full((2, 2, 3, 3), torch.nan, dtype=torch.float64)
    blocks, beside = elimination.tiles(gram, torch.ones(2, 2, dtype=torch.bool))
    assert not elimination.completes(blocks, beside, 1e9)
