"""Several seeds as one curve: mean and spread."""

from typing import Literal

import numpy as np
from scipy.special import stdtrit

Band = Literal["range", "interval"]
"""`range`: smallest to largest seed; `interval`: 95% t interval of the mean (none with one seed)."""
WORDS = {"range": "smallest to\nlargest seed", "interval": "95% interval of\nthe mean over seeds"}


def spread(values: np.ndarray, band: Band) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper edge over the first axis (seeds) of (seeds, points)."""
    mean = values.mean(0)
    if band == "range" or len(values) == 1:
        return mean, values.min(0), values.max(0)
    half = stdtrit(len(values) - 1, 0.975) * values.std(0, ddof=1) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def counted(name: str, seeds: int) -> str:
    """A group's name with its number of seeds."""
    return f"{name} ({seeds} seeds)" if seeds > 1 else name
