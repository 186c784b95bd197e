"""Eight fixed, reproducible images: comparing logits on them tells whether two networks are the same function."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

RANGES = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.25, 0.75), (0.0, 0.1))
"""Range of the pixel values of each image."""
CLOSE = 1e-4
"""Relative tolerance: logits that differ by more, relative to the image's largest, come from different functions."""


def fixed_images(shape: Sequence[int]) -> np.ndarray:
    """(8, *shape) float64: pixels hashed from their position by splitmix64, in integer arithmetic."""
    size = math.prod(shape)
    with np.errstate(over="ignore"):
        bits = np.arange(1, len(RANGES) * size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    low, high = (np.array(ends)[:, None] for ends in zip(*RANGES, strict=True))
    spread: np.ndarray = low + (high - low) * uniform.reshape(len(RANGES), size)
    return spread.reshape(len(RANGES), *shape)


def agree(one: Any, other: Any) -> bool:
    """Whether two tables of logits agree: per image they differ by at most CLOSE times the largest absolute logit."""
    try:
        left, right = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    except (TypeError, ValueError):  # untrusted input
        return False
    if left.shape != right.shape or left.ndim != 2:
        return False
    size = np.maximum(np.abs(left), np.abs(right)).max(1, initial=0.0)
    return bool((np.abs(left - right).max(1, initial=0.0) <= CLOSE * size).all())
