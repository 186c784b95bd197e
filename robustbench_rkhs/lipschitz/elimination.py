"""Sparse Cholesky factorisation of a large block matrix: blocks that are zero are neither stored nor multiplied."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from robustbench_rkhs.runtime.clock import ask

TILE = 384
"""Least order of a tile, if the matrix is that large: matrix products reach full speed at this size."""

Blocks = dict[tuple[int, int], Tensor]
"""Tiles (i, j) of a symmetric matrix with i >= j: those on and below its diagonal."""


def tiles(
    gram: Float64[Tensor, "points points channels channels"], meets: Bool[Tensor, "points points"]
) -> tuple[Blocks, list[set[int]]]:
    """Neighbouring points joined to tiles of at least `TILE` rows; and for each tile, the others that share a block with it.

    gram: only the blocks of a point with itself or an earlier one are read; meets: where these may differ from zero.
    """
    points, channels = gram.shape[0], gram.shape[2]
    groups = torch.arange(points).split(-(-TILE // channels))
    blocks, beside = Blocks(), [set[int]() for _ in groups]
    for i, rows in enumerate(groups):
        ask()
        for j, columns in enumerate(groups[: i + 1]):
            if i != j and not meets[rows][:, columns].any():
                continue
            block = gram[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            blocks[i, j] = block.transpose(1, 2).reshape(len(rows) * channels, -1)
            if i == j:  # its upper half holds later points, which `gram` leaves out
                blocks[i, i] = blocks[i, i].tril() + blocks[i, i].tril(-1).mT
            else:
                beside[i].add(j)
                beside[j].add(i)
    return blocks, beside


def completes(blocks: Blocks, beside: list[set[int]], square: float) -> bool:
    r"""Whether Cholesky's factorisation of square I - G runs to its end, G the matrix of these tiles.

    The tile with the fewest neighbours is eliminated next: A_jk -= X_j X_k^T with X_j = A_ji L_i^{-T}, L_i L_i^T = A_ii, for each
    pair of its neighbours; so zeros stay where no path of eliminated tiles joins two tiles. Each entry is a sum of products in
    some order, with some terms zero, so the error analysis of the dense factorisation holds (`verified_norm.proves`, step 3).
    Cost: for a grid of 4 by 4 points and taps of 3 by 3 about half the multiplications of the dense one.
    """
    left = {pair: -block for pair, block in blocks.items()}
    graph = {tile: set(others) for tile, others in enumerate(beside)}
    while graph:
        ask()
        i = min(graph, key=lambda tile: (len(graph[tile]), tile))
        pivot = left.pop((i, i))
        pivot.diagonal().add_(square)
        factor, info = torch.linalg.cholesky_ex(pivot)
        diagonal = factor.diagonal()
        if int(info) or not bool((diagonal > 0).all()) or not bool(diagonal.isfinite().all()):
            return False
        others = sorted(graph.pop(i))
        columns = [left.pop((j, i)) if j > i else left.pop((i, j)).mT for j in others]
        if columns:
            solved = torch.linalg.solve_triangular(factor, torch.cat(columns).mT, upper=False).mT.split([len(c) for c in columns])
            _update(left, others, solved)
        for j in others:
            graph[j] = (graph[j] | set(others)) - {i, j}
    return True


def _update(left: Blocks, others: list[int], solved: tuple[Tensor, ...]) -> None:
    """A_jk -= X_j X_k^T for every pair of neighbours, which come in order: j >= k."""
    for a, j in enumerate(others):
        ask()
        for b, k in enumerate(others[: a + 1]):
            if (j, k) in left:
                left[j, k].addmm_(solved[a], solved[b].mT, alpha=-1)
            else:
                left[j, k] = -(solved[a] @ solved[b].mT)
