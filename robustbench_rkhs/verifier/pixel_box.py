"""The pixel box [0, 1] as one more interval at the image: how far rows fall over a ball that is cut by it."""

import numpy as np

from .norms import TINY, UNIT

HALVINGS = 30
"""Halvings of the logarithm of a multiplier; any multiplier gives a sound bound."""
STEPS = 5
"""Steps towards the multiplier at which a clipped vector has a given length."""


def sides(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel may move down (at most 0) and up within [0, 1], rounded outwards; a pixel outside stays included."""
    flat = x.reshape(len(x), -1)
    return np.minimum(-flat, 0), np.maximum((1 - flat) * (1 + 4 * UNIT), 0)


def fall(a: np.ndarray, low: np.ndarray, high: np.ndarray, radius: np.ndarray) -> np.ndarray:
    r"""Upper bounds of max -a' d over { |d| <= radius, low <= d <= high }, row by row.

    For any m > 0, L(d) = -a' d - m/2 (|d|^2 - radius^2) is at least -a' d on the ball, and concave: for any point e

    .. math:: L(d) \le L(e) + \sum_i \max_{low_i \le d_i \le high_i} g_i (d_i - e_i), \qquad g = -a - m e

    So nothing depends on how m and e were found; g is what is computed, with its rounding charged over the whole side.
    """
    eps, long = radius[:, None], np.sqrt((a * a).sum(1))
    top = np.maximum(long / np.maximum(radius, TINY), TINY)
    less, more = np.full(len(a), -40.0), np.zeros(len(a))
    for _ in range(HALVINGS):
        middle = (less + more) / 2
        e = np.clip(-a / (top * 2**middle)[:, None], low, high)
        longer = (e * e).sum(1) > radius * radius
        less, more = np.where(longer, middle, less), np.where(longer, more, middle)
    m = (top * 2**more)[:, None]
    e = np.clip(-a / m, low, high)
    g = -a - m * e
    moved = np.maximum(g * (low - e), g * (high - e))
    rough = 4 * UNIT * (np.abs(a) + m * np.abs(e)) * (high - low)
    paid, bent = m[:, 0] / 2 * eps[:, 0] * eps[:, 0], m / 2 * e * e
    size = (np.abs(a * e) + bent + np.abs(moved)).sum(1) + paid
    value = (-a * e - bent + moved + rough).sum(1) + paid + 4 * (a.shape[1] + 64) * UNIT * size + TINY
    return np.where(np.isfinite(value), value, np.inf)


def multiplier(s: np.ndarray, low: np.ndarray, high: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Nearly the m at which s / m, clipped to the sides, has this length: what is not clipped has the length that is left."""
    m: np.ndarray = np.sqrt((s * s).sum(1)) / np.maximum(radius, TINY)
    for _ in range(STEPS):
        d = s / np.maximum(m, TINY)[:, None]
        clipped = np.clip(d, low, high)
        free = clipped == d
        rest = radius * radius - np.where(free, 0.0, clipped * clipped).sum(1)
        own = np.sqrt(np.where(free, s * s, 0.0).sum(1))
        m = np.where(rest > 0, own / np.sqrt(np.maximum(rest, TINY)), m)
    return m
