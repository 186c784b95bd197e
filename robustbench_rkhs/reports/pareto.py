"""The Pareto front of points in two quantities that should both be large."""

from collections.abc import Sequence


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points are Pareto optimal: no other point is at least as good in both numbers and better in one."""
    best, front = -float("inf"), [False] * len(points)
    for place in sorted(range(len(points)), key=lambda place: points[place], reverse=True):
        same = [other for other in range(len(points)) if front[other] and points[other] == points[place]]
        front[place] = points[place][1] > best or bool(same)
        best = max(best, points[place][1])
    return front


def staircase(points: Sequence[tuple[float, float]], left: float, low: float) -> tuple[list[float], list[float]]:
    """The edge of what the front dominates, from (left, its highest) to (its farthest right, low), as a line of steps.

    >>> staircase([(0.5, 0.2), (0.4, 0.3), (0.3, 0.1)], 0.0, 0.0)
    ([0.0, 0.4, 0.4, 0.5, 0.5], [0.3, 0.3, 0.2, 0.2, 0.0])
    """
    front = sorted({point for point, best in zip(points, pareto(points), strict=True) if best})
    xs, ys = [left], [front[0][1] if front else low]
    for (x, y), below in zip(front, [*(y for _, y in front[1:]), low], strict=False):
        xs += [x, x]
        ys += [y, below]
    return xs, ys
